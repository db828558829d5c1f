"""C10: finding synapses in electron micrographs."""
