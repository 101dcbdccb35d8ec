"""Runs a module, and the processes that it starts, with a torchvision that can be imported:
``python with_torchvision.py MODULE ...``."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.torchvision_without_extension import make_importable

# In processes that multiprocessing spawns the name is the second.
if __name__ in ("__main__", "__mp_main__"):
    make_importable()
if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
