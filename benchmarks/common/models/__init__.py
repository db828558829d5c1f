"""Models that are measured, as pure functions of `(params, *batch)`."""
