"""Speed of the aligned loss beside the code that users run today: ``python -m benchmarks``."""
