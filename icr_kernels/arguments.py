"""Every check of an argument, once, for all backends and before any launch.

A message names the argument, says what was expected and what came. These checks read shapes, dtypes and devices only;
checks of values would make a GPU wait and are opt-in: ICR_KERNELS_CHECK_VALUES=1.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .calls import AssignmentRule, DetectionFormula, Formula, MatchingCost, PairFunction, Pairs, Sets
from .checks import flag, number
from .checks import name as _name
from .dense_reference import Assignment
from .specifications import BoxLoss, Penalty, box_loss
from .specifications import penalty as as_penalty
from .variants import (
    BOX_FORMATS,
    CLASSIFICATIONS,
    DEFAULTS_OF_KINDS,
    KIND_NAMES,
    LOSS_NAMES,
    MOST_ASSIGNED,
    MOST_SELECTED,
    NO_PENALTY,
    PENALTY_NAMES,
    REDUCTIONS,
    WEIGHTINGS,
)

CHECK_VALUES = os.environ.get("ICR_KERNELS_CHECK_VALUES", "0") not in ("", "0")

FLOAT_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDEX_TYPES = (torch.int64, torch.int32)


def pairs(
    pred: Tensor,
    target: Tensor,
    anchor_objects: Tensor | None,
    target_index: Tensor | None,
    anchor_index: Tensor | None,
    weight: Tensor | None,
    mask: Tensor | None,
    scale: float | Tensor = 1.0,
    wise_mean: Tensor | None = None,
) -> Pairs:
    """Shapes, dtypes and devices of everything that comes in pairs."""
    _boxes("pred", pred)
    shape, device = pred.shape, pred.device
    _boxes("target", target)
    _device("target", target, device)
    if target_index is not None:
        _index("target_index", target_index, "target", target, pred)
    elif target.shape != shape:
        raise ValueError(f"target: expected the shape of pred, {tuple(shape)}, got {tuple(target.shape)}")
    if anchor_objects is None:
        if anchor_index is not None:
            raise ValueError("anchor_index: expected None, because anchor_objects is None, got a tensor")
    else:
        _boxes("anchor_objects", anchor_objects)
        _device("anchor_objects", anchor_objects, device)
        if anchor_index is not None:
            _index("anchor_index", anchor_index, "anchor_objects", anchor_objects, pred)
        elif anchor_objects.shape != shape:
            raise ValueError(
                f"anchor_objects: expected the shape of pred, {tuple(shape)}, or a table (M, 4) with anchor_index, "
                f"got {tuple(anchor_objects.shape)}"
            )
    if weight is not None:
        _tensor("weight", weight, FLOAT_TYPES)
        _per_pair("weight", weight, shape, device)
        _no_gradient("weight", weight)
    if mask is not None:
        _tensor("mask", mask, (torch.bool,))
        _per_pair("mask", mask, shape, device)
    pixels = scale if isinstance(scale, Tensor) else None
    if pixels is not None:
        _tensor("scale", pixels, FLOAT_TYPES)
        if pixels.dim() > 0:
            _per_pair("scale", pixels, shape, device)
        _device("scale", pixels, device)
        _no_gradient("scale", pixels)
    if wise_mean is not None:
        mean_of_wise(wise_mean, device)
    if CHECK_VALUES:
        _values(pred, target, anchor_objects, target_index, anchor_index, mask, pixels)
    return Pairs(pred, target, anchor_objects, target_index, anchor_index, weight, mask, pixels, wise_mean)


def mean_of_wise(wise_mean: Tensor, device: torch.device) -> None:
    _tensor("wise_mean", wise_mean, FLOAT_TYPES)
    if wise_mean.dim() != 0:
        raise ValueError(f"wise_mean: expected a 0-dim tensor, got shape {tuple(wise_mean.shape)}")
    _device("wise_mean", wise_mean, device)
    _no_gradient("wise_mean", wise_mean)


def formula(
    loss: str | BoxLoss,
    penalty: str | Penalty,
    box_format: str,
    relative: bool,
    penalty_weight: float,
    eps: float,
    scale: float | Tensor = 1.0,
) -> Formula:
    """The names and numbers that choose what is computed of each pair."""
    _name("loss", loss.name if isinstance(loss, BoxLoss) else loss, LOSS_NAMES)
    _name("penalty", penalty.name if isinstance(penalty, Penalty) else penalty, PENALTY_NAMES)
    _name("box_format", box_format, BOX_FORMATS)
    flag("relative", relative)
    pixels = 1.0 if isinstance(scale, Tensor) else number("scale", scale, 1e-9, 1e9, "a number or a tensor")
    weight = number("penalty_weight", penalty_weight)
    return Formula(box_loss(loss), as_penalty(penalty), box_format, relative, weight, _eps(eps), pixels)


def wise(formula: Formula, wise_mean: Tensor | None) -> None:
    """A mean goes with a loss that asks for one."""
    loss = box_loss(formula.loss)
    if loss.wise is not None and wise_mean is None:
        raise ValueError(f"wise_mean: expected the running mean of 1 - IoU, a 0-dim tensor, with {loss!r}, got None")
    if loss.wise is None and wise_mean is not None:
        raise ValueError(f"wise_mean: expected None, because {loss!r} is not wise, got a tensor")


def _eps(eps: float) -> float:
    return number("eps", eps, 1e-30)


def reduction(reduction: str) -> None:
    _name("reduction", reduction, REDUCTIONS)


def normalizer(normalizer: float | Tensor | None, reduction: str, pred: Tensor) -> None:
    if normalizer is None:
        return
    if reduction != "mean":
        raise ValueError(f"normalizer: expected None with reduction={reduction!r}, got {normalizer!r}")
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(f"normalizer: expected a number or a 0-dim tensor, got shape {tuple(normalizer.shape)}")
        _tensor("normalizer", normalizer, FLOAT_TYPES + INDEX_TYPES)
        _device("normalizer", normalizer, pred.device)
        _no_gradient("normalizer", normalizer)
    else:
        number("normalizer", normalizer, expected="a number or a 0-dim tensor")


def sets(
    boxes1: Tensor,
    boxes2: Tensor,
    group1: Tensor | None = None,
    group2: Tensor | None = None,
    *,
    names: tuple[str, str, str, str] = ("boxes1", "boxes2", "group1", "group2"),
) -> Sets:
    """Shapes, dtypes and devices of two sets of boxes whose pairs are looked at. Leading dimensions are broadcast."""
    for argument, boxes in ((names[0], boxes1), (names[1], boxes2)):
        _boxes(argument, boxes)
        if boxes.dim() < 2:
            raise ValueError(f"{argument}: expected boxes of shape (..., N, 4), got {tuple(boxes.shape)}")
    _device(names[1], boxes2, boxes1.device, names[0])
    if (group1 is None) != (group2 is None):
        missing, given = names[2:] if group1 is None else names[:1:-1]
        raise ValueError(f"{missing}: expected a tensor, because {given} is one, got None")
    if group1 is not None and group2 is not None:
        for argument, group, of, boxes in zip(names[2:], (group1, group2), names, (boxes1, boxes2), strict=False):
            _numbers(argument, group, of, boxes)
            _device(argument, group, boxes1.device, names[0])
    if CHECK_VALUES:
        for argument, boxes in zip(names, (boxes1, boxes2), strict=False):
            _finite(argument, boxes, None)
    if boxes1.shape[:-2] == boxes2.shape[:-2]:
        return Sets(boxes1, boxes2, group1, group2)
    try:
        lead = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{names[1]}: expected leading dimensions that go with those of {names[0]}, {tuple(boxes1.shape[:-2])}, "
            f"got {tuple(boxes2.shape[:-2])}"
        ) from None
    return Sets(
        boxes1.expand(*lead, *boxes1.shape[-2:]),
        boxes2.expand(*lead, *boxes2.shape[-2:]),
        None if group1 is None else group1.expand(*lead, group1.shape[-1]),
        None if group2 is None else group2.expand(*lead, group2.shape[-1]),
    )


def pair_function(kind: str | BoxLoss, eps: float, box_format: str) -> PairFunction:
    """The name and numbers of a matrix of all pairs."""
    if isinstance(kind, BoxLoss):
        if kind.modifiers:
            raise ValueError(f"kind: expected a loss without inner, focaler and wise, got {kind!r}")
        name, parameters = kind.name, kind.parameters
    else:
        _name("kind", kind, KIND_NAMES)
        name, parameters = kind, DEFAULTS_OF_KINDS[kind]
    _name("box_format", box_format, BOX_FORMATS)
    return PairFunction(name, box_format, _eps(eps), parameters)


def over_second(dim: int, matrix: Sets) -> bool:
    """Whether a reduction over that dimension of the matrix of all pairs is one over the second set of boxes."""
    dimensions = matrix.first.dim()
    if (
        isinstance(dim, int)
        and not isinstance(dim, bool)
        and dim % dimensions in (dimensions - 2, dimensions - 1)
        and -dimensions <= dim < dimensions
    ):
        return dim % dimensions == dimensions - 1
    raise ValueError(
        f"dim: expected one of the last two dimensions of a matrix (..., N, M) of {dimensions} dimensions, got {dim!r}"
    )


def selected_count(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected a whole number, got {type(k).__name__}")
    if not 1 <= k <= MOST_SELECTED:
        raise ValueError(f"k: expected 1 to {MOST_SELECTED}, got {k}; for more, take torch.topk of pairwise_iou")


def matched(
    pred_logits: Tensor, pred_boxes: Tensor, target_labels: Tensor, target_boxes: Tensor, target_image: Tensor
) -> None:
    """What a matching cost is made of: B images with Q queries of C classes each, and M targets."""
    _boxes("pred_boxes", pred_boxes)
    if pred_boxes.dim() != 3:
        raise ValueError(f"pred_boxes: expected boxes of shape (B, Q, 4), got {tuple(pred_boxes.shape)}")
    _tensor("pred_logits", pred_logits, FLOAT_TYPES)
    if pred_logits.dim() != 3 or pred_logits.shape[:2] != pred_boxes.shape[:2]:
        raise ValueError(
            f"pred_logits: expected (B, Q, C) with the B and Q of pred_boxes, {tuple(pred_boxes.shape[:2])}, "
            f"got {tuple(pred_logits.shape)}"
        )
    _boxes("target_boxes", target_boxes)
    if target_boxes.dim() != 2:
        raise ValueError(f"target_boxes: expected boxes of shape (M, 4), got {tuple(target_boxes.shape)}")
    for argument, values in (("target_labels", target_labels), ("target_image", target_image)):
        _numbers(argument, values, "target_boxes", target_boxes)
        _device(argument, values, pred_boxes.device, "pred_boxes")
    _device("pred_logits", pred_logits, pred_boxes.device, "pred_boxes")
    _device("target_boxes", target_boxes, pred_boxes.device, "pred_boxes")
    if CHECK_VALUES:
        names = "target_boxes", "target_labels", "target_image"
        _that_exist(names, target_boxes, target_labels, target_image, pred_logits)


def labelled(boxes: Tensor, labels: Tensor, image: Tensor | None, parent_idx: Tensor | None) -> None:
    """The boxes of a batch in one table, and what is known of each."""
    _boxes("boxes", boxes)
    if boxes.dim() != 2:
        raise ValueError(f"boxes: expected boxes of shape (N, 4), got {tuple(boxes.shape)}")
    given = [(name, values) for name, values in (("image", image), ("parent_idx", parent_idx)) if values is not None]
    for argument, values in [("labels", labels), *given]:
        _numbers(argument, values, "boxes", boxes)
        _device(argument, values, boxes.device, "boxes")


def matching_cost(
    classification: str,
    class_weight: float,
    l1_weight: float,
    giou_weight: float,
    alpha: float,
    gamma: float,
    focal_eps: float,
    eps: float,
    box_format: str,
) -> MatchingCost:
    """The names and numbers of a matching cost."""
    _name("classification", classification, CLASSIFICATIONS)
    _name("box_format", box_format, BOX_FORMATS)
    return MatchingCost(
        box_format,
        number("class_weight", class_weight),
        number("l1_weight", l1_weight),
        number("giou_weight", giou_weight),
        number("alpha", alpha, 0, 1),
        number("gamma", gamma, 0),
        number("focal_eps", focal_eps, 1e-30, 1),
        _eps(eps),
    )


def dense(scores: Tensor, boxes: Tensor, points: Tensor, truth: Tensor, labels: Tensor, image: Tensor) -> None:
    """What a dense head predicts at A points of B images with C classes, and the M boxes of their ground truth."""
    _boxes("boxes", boxes)
    if boxes.dim() != 3:
        raise ValueError(f"boxes: expected boxes of shape (B, A, 4), got {tuple(boxes.shape)}")
    _scores("scores", scores, "boxes", boxes)
    _points(points, "boxes", boxes)
    _ground_truth(truth, labels, image, scores, "boxes", boxes)


def head(box_logits: Tensor, points: Tensor, strides: Tensor) -> None:
    """What a dense head leaves of boxes at A points of B images."""
    _tensor("box_logits", box_logits, FLOAT_TYPES)
    if box_logits.dim() != 3 or box_logits.shape[-1] == 0 or box_logits.shape[-1] % 4 != 0:
        raise ValueError(
            f"box_logits: expected (B, A, 4R) with R of at least 1, got {tuple(box_logits.shape)}; "
            "(B, 4R, A) is handed on as box_logits.mT"
        )
    if isinstance(points, Tensor) and points.shape[:1] == box_logits.shape[2:] != box_logits.shape[1:2]:
        raise ValueError(
            f"box_logits: expected (B, A, 4R) with the {len(points)} points as A, got {tuple(box_logits.shape)}; "
            "(B, 4R, A) is handed on as box_logits.mT"
        )
    _points(points, "box_logits", box_logits)
    _tensor("strides", strides, FLOAT_TYPES)
    if strides.shape != points.shape[:1]:
        raise ValueError(
            f"strides: expected (A,) with the A of box_logits, {box_logits.shape[1]}, got {tuple(strides.shape)}"
        )
    _device("strides", strides, box_logits.device, "box_logits")
    for argument, tensor in (("points", points), ("strides", strides)):
        _no_gradient(argument, tensor)


def dense_head(
    box_logits: Tensor,
    class_logits: Tensor,
    points: Tensor,
    strides: Tensor,
    truth: Tensor,
    labels: Tensor,
    image: Tensor,
) -> None:
    """All that a dense head leaves, and the M boxes of the ground truth."""
    head(box_logits, points, strides)
    _scores("class_logits", class_logits, "box_logits", box_logits)
    _ground_truth(truth, labels, image, class_logits, "box_logits", box_logits)
    _no_gradient("truth", truth)


def detection_tensors(
    assignment: Assignment | tuple[Tensor, Tensor] | None,
    anchor_index: Tensor | None,
    class_weight: Tensor | None,
    class_logits: Tensor,
    truth: Tensor,
) -> None:
    """What else a dense head is trained by."""
    device = class_logits.device
    if assignment is not None:
        if not isinstance(assignment, tuple) or len(assignment) != 2:
            raise TypeError(f"assignment: expected an Assignment (index, score), got {type(assignment).__name__}")
        index, score = assignment
        for argument, values, dtypes in (
            ("assignment.index", index, INDEX_TYPES),
            ("assignment.score", score, FLOAT_TYPES),
        ):
            _tensor(argument, values, dtypes)
            if values.shape != class_logits.shape[:-1]:
                raise ValueError(
                    f"{argument}: expected one value per point, {tuple(class_logits.shape[:-1])}, "
                    f"got {tuple(values.shape)}"
                )
            _device(argument, values, device, "box_logits")
        _no_gradient("assignment.score", score)
        if CHECK_VALUES:
            _in_table("assignment.index", index, truth, "boxes of truth")
    if anchor_index is not None:
        _numbers("anchor_index", anchor_index, "truth", truth)
        _device("anchor_index", anchor_index, device, "box_logits")
        if CHECK_VALUES:
            _in_table("anchor_index", anchor_index, truth, "boxes of truth")
    if class_weight is not None:
        weights_of_classes(class_weight)
        if class_weight.shape != class_logits.shape[-1:]:
            raise ValueError(
                f"class_weight: expected one for each class, {tuple(class_logits.shape[-1:])}, "
                f"got {tuple(class_weight.shape)}"
            )
        _device("class_weight", class_weight, device, "box_logits")


def weights_of_classes(class_weight: Tensor) -> None:
    """However many classes there are."""
    _tensor("class_weight", class_weight, FLOAT_TYPES)
    if class_weight.dim() != 1:
        raise ValueError(f"class_weight: expected one number for each class, (C,), got {tuple(class_weight.shape)}")
    _no_gradient("class_weight", class_weight)


def detection_formula(
    loss: str | BoxLoss,
    penalty: str | Penalty | None,
    box_format: str,
    relative: bool,
    penalty_weight: float,
    eps: float,
    scale: float,
    gains: Sequence[float],
    normalizer: float | Tensor | None,
    weighting: str,
    image_size: Sequence[float] | None,
) -> DetectionFormula:
    """The names and numbers of the loss of a dense head."""
    scale = number("scale", scale)
    of_pairs = formula(
        loss, PENALTY_NAMES[0] if penalty is None else penalty, box_format, relative, penalty_weight, eps, scale
    )
    if penalty is None:
        of_pairs = of_pairs._replace(penalty=as_penalty(NO_PENALTY))
    if not isinstance(gains, Sequence) or len(gains) != 3:
        raise TypeError(f"gains: expected three numbers, of box, classification and distribution, got {gains!r}")
    of_box, of_class, of_distribution = (number("gains", gain) for gain in gains)
    _name("weighting", weighting, WEIGHTINGS)
    size = (0.0, 0.0)
    if image_size is not None:
        if not isinstance(image_size, Sequence) or len(image_size) != 2:
            raise TypeError(f"image_size: expected a height and a width, got {image_size!r}")
        size = number("image_size", image_size[0], 1e-30), number("image_size", image_size[1], 1e-30)
    total = 0.0
    if normalizer is not None and not isinstance(normalizer, Tensor):
        total = max(float(normalizer), of_pairs.eps)
    return DetectionFormula(of_pairs, of_box, of_class, of_distribution, total, weighting == "uniform", *size)


def _scores(argument: str, scores: Tensor, of: str, boxes: Tensor) -> None:
    _tensor(argument, scores, FLOAT_TYPES)
    if scores.dim() != 3 or scores.shape[:2] != boxes.shape[:2]:
        raise ValueError(
            f"{argument}: expected (B, A, C) with the B and A of {of}, {tuple(boxes.shape[:2])}, "
            f"got {tuple(scores.shape)}"
        )
    _device(argument, scores, boxes.device, of)


def _points(points: Tensor, of: str, boxes: Tensor) -> None:
    _tensor("points", points, FLOAT_TYPES)
    if points.shape != (boxes.shape[1], 2):
        raise ValueError(f"points: expected (A, 2) with the A of {of}, {boxes.shape[1]}, got {tuple(points.shape)}")
    _device("points", points, boxes.device, of)


def _ground_truth(truth: Tensor, labels: Tensor, image: Tensor, scores: Tensor, of: str, boxes: Tensor) -> None:
    _boxes("truth", truth)
    if truth.dim() != 2:
        raise ValueError(f"truth: expected boxes of shape (M, 4), got {tuple(truth.shape)}")
    for argument, values in (("labels", labels), ("image", image)):
        _numbers(argument, values, "truth", truth)
    for argument, tensor in (("truth", truth), ("labels", labels), ("image", image)):
        _device(argument, tensor, boxes.device, of)
    if CHECK_VALUES:
        _that_exist(("truth", "labels", "image"), truth, labels, image, scores)


def _that_exist(names: tuple[str, str, str], boxes: Tensor, labels: Tensor, image: Tensor, scores: Tensor) -> None:
    """Opt-in: finite boxes, and labels and images that there are, in every row whose image is not negative. ``scores``
    are those of the images' classes."""
    of_boxes, of_labels, of_image = names
    images, classes = scores.shape[::2]
    counts = image >= 0
    _finite(of_boxes, boxes, counts)
    for argument, values, count, of in ((of_labels, labels, classes, "classes"), (of_image, image, images, "images")):
        outside = counts & ((values < 0) | (values >= count))
        if outside.any():
            raise ValueError(f"{argument}: expected one of {count} {of}, got {int(values[outside][0])}")


def assignment_rule(
    topk: int,
    topk2: int | None,
    alpha: float,
    beta: float,
    smallest_side: float | None,
    from_logits: bool,
    box_format: str,
    truth_format: str,
    eps: float,
) -> AssignmentRule:
    for argument, count in (("topk", topk), ("topk2", topk if topk2 is None else topk2)):
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{argument}: expected a whole number, got {type(count).__name__}")
        if not 1 <= count <= MOST_ASSIGNED:
            raise ValueError(f"{argument}: expected 1 to {MOST_ASSIGNED}, got {count}")
    flag("from_logits", from_logits)
    _name("box_format", box_format, BOX_FORMATS)
    _name("truth_format", truth_format, BOX_FORMATS)
    return AssignmentRule(
        box_format,
        truth_format,
        topk,
        0 if topk2 in (None, topk) else topk2,
        from_logits,
        number("alpha", alpha, 0),
        number("beta", beta, 0),
        -1.0 if smallest_side is None else number("smallest_side", smallest_side, 0),
        number("eps", eps, 0),
    )


def _tensor(argument: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{argument}: expected dtype {expected}, got {str(value.dtype).removeprefix('torch.')}")


def _boxes(argument: str, boxes: Tensor) -> None:
    _tensor(argument, boxes, FLOAT_TYPES)
    if boxes.dim() == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{argument}: expected boxes of shape (..., 4), got {tuple(boxes.shape)}")


def _device(argument: str, value: Tensor, device: torch.device, other: str = "pred") -> None:
    if value.device != device:
        raise ValueError(f"{argument}: expected a tensor on {device}, where {other} is, got one on {value.device}")


def _per_pair(argument: str, value: Tensor, shape: torch.Size, device: torch.device) -> None:
    if value.shape != shape[:-1]:
        raise ValueError(f"{argument}: expected one value per pair, {tuple(shape[:-1])}, got {tuple(value.shape)}")
    _device(argument, value, device)


def _index(argument: str, index: Tensor, of: str, table: Tensor, pred: Tensor) -> None:
    if table.dim() != 2:
        raise ValueError(f"{of}: expected a table (M, 4) with {argument}, got {tuple(table.shape)}")
    _tensor(argument, index, INDEX_TYPES)
    _per_pair(argument, index, pred.shape, pred.device)


def _numbers(argument: str, values: Tensor, of: str, boxes: Tensor) -> None:
    _tensor(argument, values, INDEX_TYPES)
    if values.shape != boxes.shape[:-1]:
        raise ValueError(
            f"{argument}: expected one number for each box of {of}, {tuple(boxes.shape[:-1])}, "
            f"got {tuple(values.shape)}"
        )


def _no_gradient(argument: str, value: Tensor) -> None:
    is_dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None
    if is_dual or (value.requires_grad and torch.is_grad_enabled()):
        raise ValueError(
            f"{argument}: expected a tensor that does not require grad (no gradient flows to it), got one that does; "
            f"pass {argument}.detach()"
        )


def _values(
    pred: Tensor,
    target: Tensor,
    anchor_objects: Tensor | None,
    target_index: Tensor | None,
    anchor_index: Tensor | None,
    mask: Tensor | None,
    pixels: Tensor | None,
) -> None:
    """Opt-in: finite boxes and a positive scale in pairs that count, and an index of -1 or in the table."""
    _in_table("target_index", target_index, target, "targets")
    _in_table("anchor_index", anchor_index, anchor_objects, "anchor objects")
    if target_index is not None:
        mask = target_index >= 0 if mask is None else mask & (target_index >= 0)
    if pixels is not None:
        is_wrong = ~((pixels > 0) & pixels.isfinite()).expand(pred.shape[:-1])
        is_wrong = is_wrong if mask is None else is_wrong & mask
        if is_wrong.any():
            found = pixels.expand(pred.shape[:-1])[is_wrong][0].item()
            raise ValueError(f"scale: expected positive finite numbers, got {found}")
    _finite("pred", pred, mask)
    _finite("target", target, mask, target_index)
    if anchor_objects is not None:
        _finite("anchor_objects", anchor_objects, mask, anchor_index)


def _in_table(argument: str, index: Tensor | None, table: Tensor | None, of: str) -> None:
    if index is None or table is None:
        return
    outside = (index < -1) | (index >= len(table))
    if outside.any():
        value = int(index[outside].flatten()[0])
        raise ValueError(f"{argument}: expected -1 or a row of the {len(table)} {of}, got {value}")


def _finite(argument: str, boxes: Tensor, mask: Tensor | None, index: Tensor | None = None) -> None:
    finite = boxes.isfinite().all(-1)
    if index is not None:  # rows of a table that no pair has may hold anything
        finite = (index < 0) if len(boxes) == 0 else finite[index.clamp(min=0)] | (index < 0)
    if mask is not None:
        finite = finite | ~mask
    if not finite.all():
        raise ValueError(f"{argument}: expected finite boxes, got {int((~finite).sum())} that are not")
