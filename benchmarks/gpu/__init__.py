"""What a machine with an NVIDIA GPU has to say about this package, in one command: ``python -m benchmarks.gpu``."""
