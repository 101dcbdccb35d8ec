"""Importing the package is cheap and drags nothing in."""

import subprocess
import sys

# What plots, compiles kernels or trains detectors is imported by those who ask for it.
HEAVY = ("triton", "matplotlib", "torchvision", "ultralytics", "transformers", "PIL", "pandas", "scipy")

# Of the processor time that torch's own import takes.
MOST = 0.1


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_import_drags_nothing_heavy_in():
    """What torch imports by itself does not count."""
    script = f"""
import sys, torch
before = set(sys.modules)
import icr_kernels
added = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(added & set({HEAVY!r})))
"""
    assert run("-c", script).stdout.strip() == "[]"


def test_import_takes_a_small_part_of_that_of_torch():
    """In processor time and as a part of torch's own, so that neither a slow machine nor a busy one decides; the best
    of three."""
    script = """
import time
begin = time.process_time()
import torch
of_torch = time.process_time()
import icr_kernels
print((time.process_time() - of_torch) / (of_torch - begin))
"""
    smallest = min(float(run("-c", script).stdout) for _ in range(3))
    assert smallest < MOST, f"importing icr_kernels takes {smallest:.0%} of what importing torch takes"


def test_import_starts_no_threads_and_touches_no_random_state():
    script = """
import threading, torch
state, threads = torch.get_rng_state(), torch.get_num_threads()
import icr_kernels
assert torch.equal(state, torch.get_rng_state())
assert threading.active_count() == 1
assert torch.get_num_threads() == threads
assert torch.get_default_dtype() == torch.float32
"""
    run("-c", script)


def test_driver_that_is_too_old_is_told():
    """Within a major version of CUDA any driver will do, and without a driver there is no GPU to speak of."""
    from icr_kernels.builds import _driver_error

    for driver, runtime in ((13000, 13000), (13020, 12080), (12040, 12080), (0, 13000)):
        assert _driver_error(driver, runtime) is None
    error = _driver_error(12080, 13000)
    assert "built with CUDA 13 and need a driver for it, got one for CUDA 12.8" in error


def test_import_prints_nothing():
    result = run("-W", "error::DeprecationWarning:icr_kernels", "-c", "import icr_kernels")
    assert result.stdout == "" and "icr_kernels" not in result.stderr
