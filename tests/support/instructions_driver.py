"""What callgrind counts for test_instructions.py: one call of each kernel, and a dump named after it and its pairs."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import icr_kernels as icr
from benchmarks.aligned import boxes
from benchmarks.matching import some_boxes
from icr_kernels import builds
from icr_kernels.variants import LOSS_NAMES, PENALTY_NAMES

PAIRS = 4_096
INSTRUCTION_SET = "avx2"


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Name, pairs and call."""
    pred, target, anchor_objects = (rows.detach() for rows in boxes(PAIRS))
    for loss in LOSS_NAMES:
        yield f"{loss} with gradient", PAIRS, lambda loss=loss: icr.icr_loss_and_grad(pred, target, None, loss=loss)
    for penalty in PENALTY_NAMES:

        def with_penalty(penalty: str = penalty) -> object:
            return icr.icr_loss_and_grad(pred, target, anchor_objects, penalty=penalty)

        yield f"ciou + {penalty} with gradient", PAIRS, with_penalty
    yield "ciou + containment", PAIRS, lambda: icr.icr_loss(pred, target, anchor_objects)
    few = torch.arange(PAIRS) % 128 < 4
    yield (
        "ciou + containment with gradient, 3 % unmasked",
        PAIRS,
        lambda: icr.icr_loss_and_grad(pred, target, anchor_objects, mask=few),
    )
    half = [rows.half() for rows in (pred, target, anchor_objects)]
    yield "ciou + containment with gradient, float16", PAIRS, lambda: icr.icr_loss_and_grad(*half)
    yield "terms of ciou + containment", PAIRS, lambda: icr.icr_terms(pred, target, anchor_objects)

    first, second = some_boxes(512, 1), some_boxes(256, 2)
    group1, group2 = (torch.arange(len(rows)) * 8 // len(rows) for rows in (first, second))
    count = len(first) * len(second)
    for kind in ("iou", "giou"):
        yield f"pairwise {kind}", count, lambda kind=kind: icr.pairwise_iou(first, second, kind=kind)
    yield "pairwise maximum", count, lambda: icr.pairwise_max(first, second)
    yield (
        "pairwise maximum in groups",
        count // 8,
        lambda: icr.pairwise_max(first, second, group1=group1, group2=group2),
    )
    yield "best 10 of a row", count, lambda: icr.pairwise_topk(first, second, 10)


def main() -> None:
    requests = ctypes.CDLL(sys.argv[1])
    torch.set_num_threads(1)
    assert builds.cpu_build is not None
    builds.cpu_build.set_instruction_set(INSTRUCTION_SET)
    for name, pairs, call in calls():
        call()
        requests.start()
        requests.zero()
        call()
        requests.dump(f"{name}|{pairs}".encode())
        requests.stop()


if __name__ == "__main__":
    main()
