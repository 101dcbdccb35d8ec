"""Who is trained towards what: the points of a dense head and the boxes of the ground truth. Nothing here makes a
tensor of (images, boxes, points), or waits for a device."""

import torch
from torch import Tensor

from . import arguments, dense_reference
from .backends import choose, device_type
from .calls import AssignmentCall
from .dense_reference import Assignment


def task_aligned_assign(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    truth: Tensor,
    labels: Tensor,
    image: Tensor,
    *,
    topk: int = 10,
    topk2: int | None = None,
    alpha: float = 0.5,
    beta: float = 6.0,
    smallest_side: float | None = None,
    from_logits: bool = False,
    box_format: str = "xyxy",
    truth_format: str | None = None,
    eps: float = 1e-9,
    backend: str | None = None,
) -> Assignment:
    """Task-aligned assignment (TOOD: Feng et al. 2021, arXiv 2108.07755), as the detectors of the YOLO family train
    with it: each box of the ground truth takes the ``topk`` points of its image whose predictions suit it best.

    (1) A point is a candidate of a box in which it lies, more than ``eps`` from each side; sides below
    ``smallest_side`` count as that long, about the same centre.

    (2) A candidate's similarity is max(CIoU(box, prediction), 0), and its metric score^alpha similarity^beta with the
    score of the box's own class. All other points have 0 of both.

    (3) A box takes the k points with the largest metric, as far as they are its candidates.

    (4) A point that several boxes take goes to the box of its image with the largest similarity to its prediction,
    whether or not that box took it.

    (5) With ``topk2`` a box keeps of its points only those that are among so many of all points with the largest
    metric, where that of points which are not its own is 0.

    (6) The score of a point is metric * (largest similarity of its box) / (largest metric of its box + eps), both over
    the points that the box has in the end.

    Of equals the one with the lowest index is taken: the first point in 3 and 5, where zeros are equals too, and the
    first box in 4. NaN counts as larger than all numbers, as in `torch.topk` and `torch.max`; a candidate without
    similarity has the metric 0 whatever its score. That is PyTorch's order on a GPU; on a CPU `torch.topk` takes any of
    equals.

    Args:
        scores: (B, A, C), the class probabilities of A points in each of B images, or their logits with
            ``from_logits``; float16, bfloat16, float32 or float64, with any strides. A negative one counts as 0.
        boxes: (B, A, 4), the predicted boxes, in the unit of ``points`` and ``truth``, usually pixels. An inverted box
            is taken as it is.
        points: (A, 2), x and y of the points. On a CPU they are fastest as grids, one after the other, row by row.
        truth: (M, 4), the ground truth of all images. Fastest with the boxes of an image side by side.
        labels: (M,) int64 or int32, their classes. A box whose class does not exist takes no point.
        image: (M,) int64 or int32, the image of each. One that does not exist, such as -1, takes no point: padding.
        topk: from 1 to 32; more than there are points are all.
        topk2: from 1 to 32; None, or ``topk`` itself: a box keeps all its points. 1 is the one-to-one head of YOLO26.
        alpha, beta: the exponents of the metric, at least 0.
        smallest_side: in the unit of the boxes, or None: boxes as they are. Ultralytics 8.4.128 and later take the
            stride of the second level, 16 pixels.
        from_logits: ``scores`` are logits; rounded to their dtype, as `torch.sigmoid` does, their sigmoids count.
        box_format: "xyxy", "cxcywh" or "xywh", of all boxes; with ``truth_format``, of the predictions alone.
        eps: of the candidates, in the boxes' unit, and of the score.
        backend: name of a backend, or None: the first of `available_backends` that can run these tensors. The
            reference, alone of all, makes matrices (M, A).

    Returns:
        `Assignment` (index, score), (B, A) each: the row of ``truth`` of each point, int64, -1 for background, and
        float32, 0 for background. `icr_loss` takes them as ``target_index`` and ``weight``. The arithmetic is float32
        for every dtype, rounded operation by operation as PyTorch's, so that the results are the same to the bit but
        for powers and angles: on a CPU they are PyTorch's own, in CUDA the functions that PyTorch's kernels call, in
        Triton they may differ in the last bit. No gradient flows.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, name or number.
        RuntimeError: the backend that was asked for cannot run here.
    """
    arguments.dense(scores, boxes, points, truth, labels, image)
    truth_format = box_format if truth_format is None else truth_format
    rule = arguments.assignment_rule(
        topk, topk2, alpha, beta, smallest_side, from_logits, box_format, truth_format, eps
    )
    chosen = choose(backend, device_type(boxes))
    call = AssignmentCall(scores, boxes, points, truth, labels, image, rule.packed())
    with torch.no_grad():
        if chosen.operators is None:
            return dense_reference.task_aligned_assign(call, rule)
        return Assignment(*chosen.operators.assigned(*call))
