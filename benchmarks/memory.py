"""Peak memory of one call, and where a case asks for it what operators it takes, in a process of its own:
``python -m benchmarks.memory CASE IMPLEMENTATION THREADS``.

Resident memory, because what a library takes from the system directly is memory too; the peak is that of the last
call, after what those before it freed went back to the system.
"""

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
from .case import Case, Function, first_line, no_gradients
from .results import ROOT

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(which: str) -> int:
    """VmRSS, what is held now, or VmHWM, what was held at most."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} says nothing of {which}")


class Counting(TorchDispatchMode):
    """Of PyTorch's operators, as they reach the kernels of a processor: all, those that are views, and those for which
    a host would wait for its GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"operators": 0, "views": 0, "synchronisations": 0}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.counts["operators"] += 1
        self.counts["views"] += function.is_view
        self.counts["synchronisations"] += waits(function, arguments)
        return function(*arguments, **(named or {}))


INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


def waits(function: Any, arguments: Any) -> bool:
    """Whether the host needs what the call finds: a value, or how many elements the result has."""
    if function.overloadpacket in INDEXING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags))


def main() -> int:
    name, which, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    (case,) = (case for case in catalogue.CASES if str(case) == name)
    print(json.dumps(peaks(case, case.loaders("cpu")[which]())))
    return 0


def peaks(case: Case, function: Function) -> dict[str, int]:
    """Beyond what was held before the call, its inputs among it; and of the process, with interpreter and torch."""
    inputs = case.inputs()
    call = case.quantities[case.quantity](function, inputs)
    call()
    counting = Counting()
    if case.operators:  # of a call before which all is set up
        with counting:
            call()
    no_gradients(inputs)  # they belong to the call
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # the peak starts anew
    held = resident("VmRSS")
    result = call()
    peak = resident("VmHWM")
    del result
    peaks = {"peak bytes": peak - held, "process peak bytes": peak}
    return peaks | (counting.counts if case.operators else {})


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
