"""C8: recognising people with a ResNet of bottleneck blocks."""
