"""`python -m icr_kernels check`: does every kernel on this machine compute what the reference computes?

Values and gradients are held against the reference in float64, and gradients against finite differences, so the
reference is checked as well. Of matrices of all pairs, what is chosen without them is held against them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import formulas
from .assignment import task_aligned_assign
from .backends import BACKENDS, Backend
from .dense_reference import Assignment, DetectionTerms
from .detection import dense_detection_loss
from .functional import icr_loss, icr_loss_and_grad, icr_terms
from .pairwise import pairwise_iou, pairwise_max
from .terminal import progress, table
from .variants import BOX_FORMATS, KIND_NAMES, LOSS_NAMES, NO_PENALTY, PENALTY_IDS, PENALTY_NAMES

ALL_PAIRS = "all pairs"
ASSIGNMENT = "task-aligned"
DETECTION = "dense head"

# The largest error of a value or gradient that passes. Float64: absolute, relative above 1. Else relative, of the whole
# tensor; a half-precision gradient may be off by its own rounding.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
}


@dataclass(frozen=True)
class Row:
    """What was found for one loss and penalty on one backend, for the matrix of all pairs of one kind, for an
    assignment, or for the loss of a dense head. ``errors`` is empty for the reference, the measure. ``holds``: of a
    loss gradcheck; of a matrix, that its largest are found; of an assignment, that it is the same."""

    backend: str
    device: str
    loss: str
    penalty: str
    errors: dict[torch.dtype, float]
    holds: bool

    @property
    def ok(self) -> bool:
        # Written so that NaN fails.
        return self.holds and all(error <= TOLERANCE[dtype] for dtype, error in self.errors.items())


def run(backend: str | None = None, losses: Sequence[str] = LOSS_NAMES, pairs: int = 1003) -> list[Row]:
    """Check each loss without a penalty and with one, each penalty with the first loss, each kind of matrix of all
    pairs, an assignment and the loss of a dense head, on every backend that can run here, or on one of them.

    ``pairs`` random pairs serve for the comparison with the reference, a few dozen for the finite differences. Triton
    compiles a kernel for each combination of options at its first use: it gets a selection of them, in which every
    loss, penalty, dtype and format is there.
    """
    jobs = [
        (record, device, loss, penalty)
        for record, device in _runnable(backend)
        for loss in losses
        for penalty in (NO_PENALTY, *PENALTY_NAMES)
        if penalty == PENALTY_NAMES[-1] or loss == losses[0] or (penalty == NO_PENALTY and record.name != "triton")
    ]
    jobs += [(record, device, kind, ALL_PAIRS) for record, device in _runnable(backend) for kind in KIND_NAMES]
    jobs += [(record, device, "assignment", ASSIGNMENT) for record, device in _runnable(backend)]
    jobs += [(record, device, "detection", DETECTION) for record, device in _runnable(backend)]
    return [_row(*job, pairs) for job in progress(jobs, "check")]


def report(rows: Sequence[Row]) -> str:
    """One line per row, and how many failed."""
    dtypes = list(TOLERANCE)
    names = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    head = ["backend", "loss or kind", "penalty", *names, "gradcheck or choice", ""]
    lines = [
        [
            f"{row.backend} ({row.device})",
            row.loss,
            row.penalty,
            *(f"{row.errors[dtype]:.1e}" if dtype in row.errors else "-" for dtype in dtypes),
            "ok" if row.holds else "WRONG",
            "ok" if row.ok else "FAILED",
        ]
        for row in rows
    ]
    failed = sum(not row.ok for row in rows)
    allowed = ", ".join(f"{tolerance:.1e}" for tolerance in TOLERANCE.values())
    return "\n".join(
        [
            table(head, lines, "lll" + "r" * len(dtypes) + "ll"),
            f"largest error against the reference in float64; allowed: {allowed}",
            f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} ok",
        ]
    )


def _runnable(backend: str | None) -> list[tuple[Backend, str]]:
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [
        (record, device)
        for record in BACKENDS
        for device in devices
        if backend in (None, record.name) and record.obstacle(device) is None
    ]


def _row(backend: Backend, device: str, loss: str, penalty: str, pairs: int) -> Row:
    if penalty == ALL_PAIRS:
        return _row_of_all_pairs(backend, device, loss)
    if penalty == ASSIGNMENT:
        return _row_of_assignments(backend, device)
    if penalty == DETECTION:
        return _row_of_detection(backend, device)
    errors = {}
    if backend.operators is not None:
        boxes = scene(pairs, penalty, device)
        relatives = (False,) if penalty == NO_PENALTY else (False, True)
        variations = list(itertools.product(BOX_FORMATS, relatives))
        dtypes = list(TOLERANCE)
        if backend.name == "triton":
            number = LOSS_NAMES.index(loss) + PENALTY_IDS[penalty] + 1
            variations = [variations[number % len(variations)]]
            dtypes = [torch.float32, dtypes[number % len(dtypes)]]
        errors = {dtype: parity(backend.name, loss, penalty, boxes, dtype, variations) for dtype in dtypes}
    correct = gradcheck(backend.name, loss, penalty, scene(32, penalty, device))
    return Row(backend.name, device, loss, penalty, errors, correct)


def _row_of_all_pairs(backend: Backend, device: str, kind: str) -> Row:
    """The matrix and its gradients against the reference, and its largest elements against what is chosen without it:
    of kinds in which a compiler may fuse a product with a sum, their values but for rounding."""
    boxes = [rows[:count] for rows, count in zip(scene(301, NO_PENALTY, device), (40, 301), strict=True)]
    errors = {}
    for dtype in TOLERANCE if backend.operators is not None else ():
        rounded = [rows.to(dtype) for rows in boxes]
        found = _matrix(rounded, kind, backend.name)
        expected = _matrix([rows.double() for rows in rounded], kind, "reference")
        errors[dtype] = float(max(_error(*pair, dtype) for pair in zip(found, expected, strict=True)))
    matrix = pairwise_iou(*boxes, kind=kind, backend=backend.name)
    best = [pairwise_max(*boxes, kind=kind, dim=dim, backend=backend.name) for dim in (-1, -2)]
    holds = all(
        torch.allclose(values, matrix.amax(dim), rtol=0, atol=1e-12)
        and torch.allclose(values, matrix.take_along_dim(indices.unsqueeze(dim), dim).squeeze(dim), rtol=0, atol=1e-12)
        for dim, (values, indices) in zip((-1, -2), best, strict=True)
    )
    return Row(backend.name, device, kind, ALL_PAIRS, errors, holds)


def _row_of_assignments(backend: Backend, device: str) -> Row:
    """Of two images, in float32 whatever the dtype: who is assigned to whom, and the scores."""
    truth, pred = scene(24, NO_PENALTY, device)
    generator = torch.Generator().manual_seed(0)
    points = (4 * torch.rand(200, 2, generator=generator) - 1.5).to(device)
    nearest = torch.arange(400, device=device).view(2, 200) % 24
    scores = torch.rand(2, 200, 3, generator=generator).to(device)
    rows = torch.arange(24, device=device)
    errors, holds = {}, True
    for dtype in TOLERANCE if backend.operators is not None else ():
        if dtype == torch.float64:
            continue
        tensors = (scores.to(dtype), pred[nearest].to(dtype), points.to(dtype), truth.to(dtype), rows % 3, rows % 2)
        found, expected = (
            task_aligned_assign(*tensors, topk=5, topk2=4, smallest_side=0.5, backend=name)
            for name in (backend.name, "reference")
        )
        holds &= torch.equal(found.index, expected.index)
        errors[dtype] = _error(found.score, expected.score.double(), torch.float32)
    return Row(backend.name, device, "assignment", ASSIGNMENT, errors, holds)


def _row_of_detection(backend: Backend, device: str) -> Row:
    """Of two images whose points are assigned to boxes around them: the terms, and the gradients of the logits."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(device)

    points, strides = 64 * draw(100, 2), 8 * torch.ones(100, device=device, dtype=torch.float64)
    near = points[::4]
    truth = torch.cat((near - 4 - 20 * draw(25, 2), near + 4 + 20 * draw(25, 2)), 1)
    row = torch.arange(25, device=device)
    index = torch.where(draw(2, 100) < 0.5, torch.arange(100, device=device) // 4, -1)
    options: dict[str, Any] = {"labels": row % 3, "image": row % 2, "assignment": Assignment(index, draw(2, 100))}
    options |= {"loss": "giou", "penalty": "containment", "anchor_index": (row + 1) % 25}

    loss_of: Callable[..., DetectionTerms] = partial(dense_detection_loss, **options)

    def evaluated(name: str, dtype: torch.dtype, *logits: Tensor) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in logits]
        terms = loss_of(*leaves, points.to(dtype), strides.to(dtype), truth.to(dtype), backend=name)
        return [torch.stack(terms).detach(), *torch.autograd.grad(torch.stack(terms).sum(), leaves)]

    logits = [4 * draw(2, channels, 100).mT - 2 for channels in (20, 3)]
    errors = {}
    for dtype in TOLERANCE if backend.operators is not None else ():
        rounded = [each.to(dtype) for each in logits]
        found = evaluated(backend.name, torch.float64 if dtype == torch.float64 else torch.float32, *rounded)
        expected = evaluated("reference", torch.float64, *(each.double() for each in rounded))
        errors[dtype] = float(max(_error(*pair, dtype) for pair in zip(found, expected, strict=True)))

    def total(shift: Tensor) -> Tensor:
        moved = [each + shift.repeat(each.shape[-1] // 4 + 1)[: each.shape[-1]] for each in logits]
        return torch.stack(loss_of(*moved, points, strides, truth, backend=backend.name)).sum()

    shift = torch.zeros(4, dtype=torch.float64, device=device, requires_grad=True)
    holds = torch.autograd.gradcheck(total, shift, eps=1e-6, atol=1e-5, rtol=1e-6, raise_exception=False)
    return Row(backend.name, device, "detection", DETECTION, errors, holds)


def _matrix(boxes: Sequence[Tensor], kind: str, backend: str) -> list[Tensor]:
    leaves = [rows.detach().requires_grad_() for rows in boxes]
    matrix = pairwise_iou(*leaves, kind=kind, backend=backend)
    upstream = torch.linspace(0.5, 1.5, matrix.numel(), dtype=matrix.dtype, device=matrix.device).view_as(matrix)
    return [matrix.detach(), *torch.autograd.grad(matrix, leaves, upstream)]


def scene(pairs: int, penalty: str, device: str = "cpu") -> tuple[Tensor, ...]:
    """Predictions, targets and, with a penalty, anchor objects: float64 corners (pairs, 4), about 1 in size.

    Predictions and targets overlap, contain each other or lie apart; predictions lie inside, partly or wholly outside
    their anchor object, or cover it. On an axis no two edges, centres or lengths are closer than 0.01: no kink is near.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(count: int, largest: float) -> Tensor:
        center, sides = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
        sides = largest * (0.1 + 0.9 * sides**2)
        return torch.stack((center - sides / 2, center + sides / 2), dim=1)

    def apart(values: Tensor) -> Tensor:
        return values.sort(dim=1).values.diff(dim=1).flatten(1).amin(1) > 0.01

    found = torch.empty(0, 3, 2, 2, dtype=torch.float64)
    while len(found) < pairs:
        count = 4 * pairs
        drawn = torch.stack((draw(count, 1.5), draw(count, 1.5), draw(count, 2.5)), dim=1)
        low, high = drawn.unbind(2)
        found = torch.cat((found, drawn[apart(drawn.flatten(1, 2)) & apart(low + high) & apart(high - low)]))
    boxes = found[:pairs].flatten(2).to(device).unbind(1)
    return boxes[:2] if penalty == NO_PENALTY else boxes


def parity(
    backend: str,
    loss: str,
    penalty: str,
    boxes: Sequence[Tensor],
    dtype: torch.dtype,
    variations: Sequence[tuple[str, bool]],
) -> float:
    """The largest error of a backend on ``boxes`` rounded to ``dtype``, over pairs of a box format and ``relative``."""
    errors = []
    for box_format, relative in variations:
        rounded = [_in_format(corners, box_format).to(dtype) for corners in boxes]
        options: dict[str, Any] = {"loss": loss, "box_format": box_format}
        if penalty != NO_PENALTY:
            options |= {"penalty": penalty, "penalty_weight": 0.7, "relative": relative}
        found = _everything(rounded, options, backend)
        expected = _everything([box.double() for box in rounded], options, "reference")
        errors += [_error(*pair, dtype) for pair in zip(found, expected, strict=True)]
    # NaN is the largest.
    return float(torch.tensor(errors, dtype=torch.float64).amax())


def _in_format(corners: Tensor, box_format: str) -> Tensor:
    low, high = corners.split(2, dim=-1)
    first = (low + high) / 2 if box_format == "cxcywh" else low
    return torch.cat((first, high if box_format == "xyxy" else high - low), dim=-1)


def _everything(boxes: Sequence[Tensor], options: dict[str, Any], backend: str) -> list[Tensor]:
    """Every public result for these boxes: loss, terms, their gradients in every input, and the one-pass gradient."""
    leaves = [box.detach().requires_grad_() for box in boxes]
    pairs = (*leaves, None) if len(leaves) == 2 else tuple(leaves)
    loss = icr_loss(*pairs, reduction="none", backend=backend, **options)
    upstream = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype, device=loss.device)
    gradients = torch.autograd.grad(loss, leaves, upstream)
    terms = icr_terms(*pairs, backend=backend, **options)
    # Unlike weights, or loss and IoU would cancel.
    mixed = sum(weight * term for weight, term in enumerate(terms, start=1))
    terms_gradients = torch.autograd.grad(mixed, leaves, upstream)
    one_pass = icr_loss_and_grad(*pairs, reduction="sum", backend=backend, **options)
    return [tensor.detach() for tensor in (loss, *gradients, *terms, *terms_gradients, *one_pass)]


def _error(found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    difference = found.double() - expected
    if dtype == torch.float64:
        return float((difference.abs() / expected.abs().clamp(min=1)).amax())
    return float(difference.norm() / expected.norm().clamp(min=1e-3))


def gradcheck(backend: str, loss: str, penalty: str, boxes: Sequence[Tensor]) -> bool:
    """`torch.autograd.gradcheck` of the loss of every pair in each of its boxes, float64 corners (pairs, 4).

    A pair depends on its own boxes only, so all pairs are shifted together, by one tensor of four numbers.
    """

    def losses(name: str, moved: int, shift: Tensor) -> Tensor:
        shifted = [box + shift if number == moved else box for number, box in enumerate(boxes)]
        pairs = (*shifted, None) if len(shifted) == 2 else tuple(shifted)
        options = {} if penalty == NO_PENALTY else {"penalty": penalty}
        return icr_loss(*pairs, loss=loss, reduction="none", backend=name, **options)

    def correct(moved: int) -> bool:
        truth = partial(losses, "reference", moved)
        truth_without_sg = frozen(truth)

        def function(shift: Tensor) -> Tensor:
            with torch.no_grad():
                correction = truth_without_sg(shift) - truth(shift)
            return losses(backend, moved, shift) + correction

        shift = torch.zeros(4, dtype=torch.float64, device=boxes[0].device, requires_grad=True)
        function(shift)
        return torch.autograd.gradcheck(function, shift, eps=1e-6, atol=1e-6, rtol=1e-6, raise_exception=False)

    return all(correct(moved) for moved in range(len(boxes)))


def frozen(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The reference ``function`` with every sg() value fixed to what it was at the first call.

    That is the function whose derivative an analytic gradient with stop-gradients is, so finite differences of it can
    be held against that gradient.
    """
    recorded: list[Tensor] = []

    def call(*boxes: Tensor) -> Tensor:
        replay = iter(recorded) if recorded else None

        def constant(x: Tensor) -> Tensor:
            if replay is not None:
                return next(replay)
            recorded.append(x.detach().clone())
            return recorded[-1]

        original, formulas.constant = formulas.constant, constant
        try:
            return function(*boxes)
        finally:
            formulas.constant = original

    return call
