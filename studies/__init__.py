"""What losses and penalties do to boxes and to detectors: programs that run from a checkout, outside the package."""
