"""C9: what changed between two pictures of one place."""
