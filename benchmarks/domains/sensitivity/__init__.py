"""C15: which settings of Budgeted Broadcast matter, and whether they carry over."""
