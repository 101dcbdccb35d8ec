"""What a call does on a GPU beside taking time: launches, memory, waiting."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType


def device_activities(call: Callable[[], Any]) -> list[str]:
    """Names of all that the call puts on the device: kernels, "Memset (...)" and "Memcpy ...". To be warmed before."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return [
        event.name
        for event in profile.events()
        # Compilers annotate spans of the device's timeline; those are no launches.
        if event.device_type == DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith(("## Call", "Torch-Compiled Region"))
    ]


def launches(call: Callable[[], Any]) -> dict[str, int]:
    """Numbers of kernels, memsets and copies. The profiler misses the first activities of its life, so it is warmed."""
    device_activities(lambda: torch.zeros(1, device="cuda"))
    names = device_activities(call)
    memsets = sum(name.startswith("Memset") for name in names)
    copies = sum(name.startswith("Memcpy") for name in names)
    return {"kernels": len(names) - memsets - copies, "memsets": memsets, "copies": copies}


def memory(call: Callable[[], Any]) -> dict[str, int]:
    """Blocks that the call takes from the allocator, and the bytes that it holds at most beyond those held before."""
    gc.collect()
    torch.cuda.synchronize()
    taken, held = torch.cuda.memory_stats().get("allocation.all.allocated", 0), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    counts = {
        "allocations": torch.cuda.memory_stats()["allocation.all.allocated"] - taken,
        "peak bytes": torch.cuda.max_memory_allocated() - held,
    }
    del result
    return counts


def synchronisations(call: Callable[[], Any]) -> dict[str, int]:
    """How often the host waits for the device, as far as torch can tell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waited = sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)
    return {"synchronisations": waited}
