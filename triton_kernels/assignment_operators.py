"""The operator that assigns points to ground truth: views, allocations, launches, as in `operators`."""

import torch

from icr_kernels.calls import AssignmentCall
from icr_kernels.variants import BOX_FORMATS

from .assignment import Head, Truth, claimed_kernel, cleared_kernel, decided_kernel, scored_kernel
from .kernels import Rows
from .operators import block_for, column_of, launch, programs_for
from .pairwise import Set
from .pairwise_operators import set_of

# Places for the best points of a box, a power of two: as many as it may take.
KEPT = 32


def assigned(*arguments):
    call = AssignmentCall(*arguments)
    box_format, truth_format, topk, topk2, from_logits, *numbers = call.numbers
    (images, points, classes), rows, device = call.scores.shape, len(call.truth), call.boxes.device
    index, owner = (torch.empty((images, points), dtype=torch.int64, device=device) for _ in range(2))
    similarity, score = (torch.empty((images, points), dtype=torch.float32, device=device) for _ in range(2))
    first = torch.empty(images, dtype=torch.int32, device=device)
    head = Head(Set(call.scores, *call.scores.stride()), set_of(call.boxes), Rows(call.points, *call.points.stride()))
    truth = Truth(Rows(call.truth, *call.truth.stride()), column_of(call.labels), column_of(call.image))
    alpha, *_, eps = numbers
    formula = {"ROOT": alpha == 0.5, "FROM_LOGITS": bool(from_logits), "FORMAT": BOX_FORMATS[int(box_format)]}
    formula["TRUTH_FORMAT"] = BOX_FORMATS[int(truth_format)]
    counts, block = (images, points, classes), block_for(call.boxes)
    with torch.cuda.device_of(call.boxes):
        launch(cleared_kernel, programs_for(index.numel(), block), index, owner, first, images, points, BLOCK=block)
        claimed = index, owner, first, int(topk)
        launch(claimed_kernel, rows, head, truth, *counts, *claimed, *numbers, **formula, KEPT=KEPT, BLOCK=block)
        decided = index, owner, first, similarity, score
        programs = images * programs_for(points, block)
        launch(decided_kernel, programs, head, truth, points, *decided, *numbers, **formula, BLOCK=block)
        scored = index, similarity, score, int(topk2), eps
        launch(scored_kernel, rows, truth, *counts, *scored, KEPT=KEPT, BLOCK=block)
    return index, score
