"""The papers' claims, repeated with controls: a folder for each."""
