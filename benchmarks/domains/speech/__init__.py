"""C7: recognising spoken words with an encoder and a decoder."""
