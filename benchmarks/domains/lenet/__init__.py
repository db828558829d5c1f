"""C12: NNrelief on the LeNets."""
