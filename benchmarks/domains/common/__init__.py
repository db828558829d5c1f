"""What the domains share: methods, training, instruments, tables, pictures."""
