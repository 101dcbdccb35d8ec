"""Peak memory of one call, and where a case asks for it how many operators it takes, in a process of its own:
``python -m benchmarks.memory CASE IMPLEMENTATION THREADS``.

Resident memory, because what a library takes from the system directly is memory too; the peak is that of the second
call, after what the first one freed went back to the system.
"""

import contextlib
import ctypes
import gc
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import catalogue
from .case import Case, Function, first_line
from .results import ROOT

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(which: str) -> int:
    """VmRSS, what is held now, or VmHWM, what was held at most."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} says nothing of {which}")


class Counting(TorchDispatchMode):
    """Of PyTorch's operators, as they reach the kernels of a processor."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += 1
        return function(*arguments, **(named or {}))


def main() -> int:
    name, which, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    (case,) = (case for case in catalogue.CASES if str(case) == name)
    print(json.dumps(peaks(case, case.loaders("cpu")[which]())))
    return 0


def peaks(case: Case, function: Function) -> dict[str, int]:
    """Beyond what was held before the call, its inputs among it; and of the process, with interpreter and torch."""
    call = case.quantities[case.quantity](function, case.inputs())
    counting = Counting()
    with counting if case.operators else contextlib.nullcontext():
        call()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # the peak starts anew
    held = resident("VmRSS")
    result = call()
    peak = resident("VmHWM")
    del result
    peaks = {"peak bytes": peak - held, "process peak bytes": peak}
    return peaks | ({"operators": counting.count} if case.operators else {})


def measured(case: str, implementation: str) -> dict[str, int]:
    """The same from another process. RuntimeError: why not."""
    if not CLEAR.exists():
        raise RuntimeError("peak memory is measured on Linux only")
    command = [sys.executable, "-m", "benchmarks.memory", case, implementation, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(first_line(RuntimeError(done.stderr.strip().rpartition("\n")[2])))
    return json.loads(done.stdout.strip().rpartition("\n")[2])


if __name__ == "__main__":
    sys.exit(main())
