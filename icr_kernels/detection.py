"""The whole criterion of a dense head, from its raw outputs: assignment, boxes, classes and distributions."""

from typing import Any

import torch
from torch import Tensor

from . import arguments, autograd, dense_reference, transforms
from .assignment import task_aligned_assign
from .backends import choose, device_type
from .calls import DetectionCall, compute_dtype
from .dense_reference import Assignment, DetectionTerms
from .integrations.distributed import mean_over_ranks
from .specifications import BoxLoss, Penalty


def decode_boxes(box_logits: Tensor, points: Tensor, strides: Tensor, *, backend: str | None = None) -> Tensor:
    """The boxes that a dense head predicts, in one pass, without a tensor of the softmax.

    A side lies as many strides from its point as the mean of a distribution over 0 to R - 1 says (Li et al. 2020,
    Generalized Focal Loss, arXiv 2006.04388), or with R = 1 as the output itself.

    Args:
        box_logits: (B, A, 4R), at A points of B images the R logits of the left side, then those of the top, the right
            and the bottom; float16, bfloat16, float32 or float64, with any strides. A head that leaves (B, 4R, A) is
            handed on as ``box_logits.mT``.
        points: (A, 2), x and y of the points, in the unit that the boxes shall have, usually pixels.
        strides: (A,), the stride of each point in that unit.
        backend: name of a backend, or None: the first of `available_backends` that can run these tensors.

    Returns:
        (B, A, 4) corners, float32, or float64 for float64 logits: a half-precision head loses nothing by its boxes. A
        negative distance makes an inverted box. Gradients reach ``box_logits``, in its dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or name.
        RuntimeError: the backend that was asked for cannot run here.
    """
    arguments.head(box_logits, points, strides)
    chosen = choose(backend, device_type(box_logits))
    if chosen.operators is None or transforms.active() or torch.compiler.is_exporting():
        return dense_reference.decode_boxes(box_logits, points, strides)
    if torch.is_grad_enabled() and box_logits.requires_grad:
        return autograd.Decoded.apply(box_logits, points, strides, chosen.name)
    return chosen.operators.decoded(box_logits, points, strides)


def assign(*head: Tensor, box_format: str, **options: Any) -> Assignment:
    """`task_aligned_assign` of what a dense head leaves, given as `dense_detection_loss` takes it."""
    box_logits, class_logits, points, strides, truth, labels, image = head
    with torch.no_grad():
        boxes = decode_boxes(box_logits, points, strides, backend=options["backend"])
    return task_aligned_assign(
        class_logits, boxes, points, truth, labels, image, from_logits=True, truth_format=box_format, **options
    )


def dense_detection_loss(
    box_logits: Tensor,
    class_logits: Tensor,
    points: Tensor,
    strides: Tensor,
    truth: Tensor,
    labels: Tensor,
    image: Tensor,
    *,
    assignment: Assignment | tuple[Tensor, Tensor] | None = None,
    topk: int = 10,
    topk2: int | None = None,
    alpha: float = 0.5,
    beta: float = 6.0,
    smallest_side: float | None = None,
    loss: str | BoxLoss = "ciou",
    penalty: str | Penalty | None = None,
    anchor_index: Tensor | None = None,
    penalty_weight: float = 1.0,
    relative: bool = False,
    weighting: str = "uniform",
    class_weight: Tensor | None = None,
    gains: tuple[float, float, float] = (7.5, 0.5, 1.5),
    image_size: tuple[float, float] | None = None,
    normalizer: float | Tensor | None = None,
    average_over_ranks: bool = False,
    scale: float = 1.0,
    wise_mean: Tensor | None = None,
    eps: float = 1e-7,
    box_format: str = "xyxy",
    backend: str | None = None,
) -> DetectionTerms:
    """What a dense head is trained by: from its raw outputs to the loss and its gradients, in a handful of launches.

    With the score s of each point that has a target, S the sum of these scores, at least 1, and of each term its gain:

    - box: the sum of s loss(box, target), divided by S;
    - classification: the sum over all points and classes of the binary cross-entropy, where a point is s of its
      target's class and 0 of all others, divided by S;
    - distribution: the sum of s times the mean over the four sides of the distribution focal loss (Li et al. 2020,
      arXiv 2006.04388), divided by S; with R = 1 of the absolute error of the distances;
    - penalty: of each point whose target has an anchor object, the penalty of its box, with the gain of the boxes.

    That is the loss of YOLOv8 to YOLO26 as Ultralytics has it, but for the factor B that it multiplies their sum by;
    the defaults are its own, but for ``smallest_side``, which is 16 pixels there since 8.4.128, and for the one-to-one
    head of YOLO26, whose ``topk`` is 7 and ``topk2`` 1. Boxes are decoded in float32 whatever the dtype of the logits.
    No tensor of (images, boxes, points) or of (images, points, classes) is made but the gradient of the logits, nothing
    waits for a device, and the same input gives the same bits.

    Args:
        box_logits: (B, A, 4R), as of `decode_boxes`; R from 2 on are distributions, R = 1 is a distance.
        class_logits: (B, A, C), in any float dtype and with any strides; (B, C, A) is handed on as ``.mT``.
        points: (A, 2), x and y of the points, in the unit of ``truth``, usually pixels.
        strides: (A,), the stride of each point.
        truth: (M, 4), the ground truth of all images.
        labels: (M,) int64 or int32, their classes.
        image: (M,) int64 or int32, the image of each; one that does not exist, such as -1, is padding.
        assignment: the row of ``truth`` of each point (B, A), -1 for background, and its score (B, A) in float32. None:
            that of `task_aligned_assign`.
        topk, topk2, alpha, beta, smallest_side: of that assignment.
        loss: of the boxes, as of `box_iou_loss`.
        penalty: as of `icr_loss`, or None: the term is 0.
        anchor_index: (M,) int64 or int32, the row of ``truth`` that is the anchor object of each, -1 for none, as
            `Relations.anchor_index` finds them.
        penalty_weight, relative: as of `icr_loss`.
        weighting: "uniform", the mean penalty of all points whose target has an anchor object; or "tal",
            their penalties weighted as the boxes are.
        class_weight: (C,), what the cross-entropy of each class is multiplied by; any float dtype.
        gains: of box (and penalty), classification and distribution. Where they are tensors let these be 1 and multiply
            the terms: each has a gradient of its own.
        image_size: with R = 1, the height and width that vertical and horizontal distances are divided by, as in
            YOLO26; None: the stride of their point.
        normalizer: in the place of S, a number or a 0-dim tensor that stays on its device. Below eps it counts as eps.
        average_over_ranks: S is the mean of those of all processes of `torch.distributed`.
        scale: as of `icr_loss`, a number.
        wise_mean: as of `icr_loss`. (`DetectionLoss` keeps one.)
        eps: as of `icr_loss`, in the square of the boxes' unit.
        box_format: "xyxy", "cxcywh" or "xywh", of ``truth``.
        backend: name of a backend, or None: the first of `available_backends` that can run these tensors.

    Returns:
        `DetectionTerms` (box, classification, distribution, penalty), 0-dim, float32, or float64 if logits or truth are
        float64. ``sum`` of them is the loss. Gradients reach ``box_logits`` and ``class_logits``, in their dtypes and
        as their memory is laid out; a logit beyond 1e18 counts as 1e18, and every finite one has a finite loss.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, name or number.
        RuntimeError: the backend that was asked for cannot run here; a second derivative, but with backend="reference".
    """
    arguments.dense_head(box_logits, class_logits, points, strides, truth, labels, image)
    arguments.normalizer(normalizer, "mean", box_logits)
    formula = arguments.detection_formula(
        loss, penalty, box_format, relative, penalty_weight, eps, scale, gains, normalizer, weighting, image_size
    )
    if wise_mean is not None:
        arguments.mean_of_wise(wise_mean, box_logits.device)
    arguments.wise(formula.formula, wise_mean)
    if (penalty is None) != (anchor_index is None):
        raise ValueError(
            "anchor_index: expected a tensor with a penalty and None without, "
            f"got {type(anchor_index).__name__} with penalty={penalty!r}"
        )
    arguments.detection_tensors(assignment, anchor_index, class_weight, class_logits, truth)
    arguments.flag("average_over_ranks", average_over_ranks)
    if average_over_ranks and normalizer is not None:
        raise ValueError("average_over_ranks: expected False, because normalizer is not None, got True")
    if assignment is None:
        assignment = assign(
            box_logits,
            class_logits,
            points,
            strides,
            truth,
            labels,
            image,
            topk=topk,
            topk2=topk2,
            alpha=alpha,
            beta=beta,
            smallest_side=smallest_side,
            box_format=box_format,
            backend=backend,
        )
    index, score = assignment
    if average_over_ranks:
        has_target = (index >= 0) & (index < len(truth))
        dtype = compute_dtype(box_logits, class_logits, truth)
        normalizer = mean_over_ranks(torch.where(has_target, score, 0).sum(dtype=dtype))
    call = DetectionCall(
        box_logits,
        class_logits,
        points,
        strides,
        truth,
        labels,
        index,
        score,
        anchor_index,
        class_weight,
        wise_mean,
        normalizer if isinstance(normalizer, Tensor) else None,
        formula.packed(),
    )
    chosen = choose(backend, device_type(box_logits))
    if chosen.operators is None or transforms.active() or torch.compiler.is_exporting():
        return dense_reference.dense_detection_loss(call, formula)
    if autograd.wanted(box_logits, class_logits):
        return DetectionTerms(*autograd.Detection.apply(box_logits, class_logits, chosen.name, call))
    return DetectionTerms(*chosen.operators.detection_loss(*call)[:4])
