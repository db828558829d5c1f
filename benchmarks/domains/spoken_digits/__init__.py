"""C13: Fine-Pruning a recogniser of digits for one speaker."""
