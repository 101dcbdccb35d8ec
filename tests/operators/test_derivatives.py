"""Every public function under every way to differentiate: right, or an error. Never a zero, a None, or a part of it."""

import functools
import inspect

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, functional

import icr_kernels as icr
from inputs import (
    BACKENDS,
    COMPILED_BACKENDS,
    INTERPRETED,
    as_table,
    box,
    crowd,
    device_of,
    every_backend,
    every_compiled_backend,
    pairs_of_a_table,
)

# How each public function is differentiated, or why it is not.
NOT_DIFFERENTIABLE = {
    "pairwise_max": "a selection",
    "pairwise_topk": "a selection",
    "match_anchor_objects": "a selection",
    "Matcher": "a selection",
    "Relations": "a selection",
    "detr_matching_cost": "serves a selection",
    "task_aligned_assign": "a selection",
    "available_backends": "of no tensor",
    "backend_for": "of no tensor",
    "AnchorMatch": "holds results",
    "Assignment": "holds results",
    "DetectionTerms": "holds results",
    "ICRTerms": "holds results",
    "Selection": "holds results",
    "BoxLoss": "holds options",
    "Penalty": "holds options",
}
# Under transforms the reference is called: tests/matching/test_detection_loss.py.
OF_HEADS = {"decode_boxes", "dense_detection_loss", "DetectionLoss"}


def _pairs(device: str) -> dict[str, Tensor]:
    pred, target, table, index = pairs_of_a_table(8, 3, dtype=torch.float64, device=device)
    return {"pred": pred, "target": target, "anchor_objects": table, "anchor_index": index}


def _of_pairs(name: str, role: str, result, options, of_table: bool = False):
    def function(device: str, backend: str):
        given = _pairs(device)
        if name in ("box_iou_loss", "BoxIoULoss"):
            given = {key: given[key] for key in ("pred", "target")}
        if of_table:
            given["target"], given["target_index"] = as_table(given["target"])
        mask = torch.arange(8, device=device) != 3

        def call(boxes: Tensor) -> Tensor:
            arguments = {**given, role: boxes, "mask": mask}
            if inspect.isclass(getattr(icr, name)):
                return result(getattr(icr, name)(**options, backend=backend)(**arguments))
            return result(getattr(icr, name)(**arguments, **options, backend=backend))

        return call, given[role]

    return function


def _of_sets(role: str, kind: str):
    def function(device: str, backend: str):
        sets = {name: crowd(6, seed, torch.float64, device) for seed, name in enumerate(("boxes1", "boxes2"))}
        weights = torch.linspace(-1, 2, 36, dtype=torch.float64, device=device).view(6, 6)

        def call(boxes: Tensor) -> Tensor:
            return (icr.pairwise_iou(**{**sets, role: boxes}, kind=kind, backend=backend) * weights).sum()

        return call, sets[role]

    return function


def _itself(value: Tensor) -> Tensor:
    return value


def _weighted(values: Tensor) -> Tensor:
    return (values * torch.linspace(-1, 2, len(values), dtype=values.dtype, device=values.device)).sum()


_ALL = {"loss": "ciou", "penalty": "containment+pull"}
# Name: (device, backend) -> a function of boxes whose value is one number, and boxes.
FUNCTIONS = {
    **{
        f"icr_loss of {role}": _of_pairs("icr_loss", role, _itself, _ALL)
        for role in ("pred", "target", "anchor_objects")
    },
    **{
        f"icr_loss of {role} to a table": _of_pairs("icr_loss", role, _itself, _ALL, True)
        for role in ("pred", "target")
    },
    "icr_loss of each pair": _of_pairs("icr_loss", "pred", _weighted, {"reduction": "none", "relative": True}),
    "icr_loss by a normalizer": _of_pairs("icr_loss", "pred", _itself, {"normalizer": 3, "loss": "giou"}),
    "ICRLoss": _of_pairs("ICRLoss", "pred", _itself, {"reduction": "sum", "loss": "siou"}),
    "box_iou_loss": _of_pairs("box_iou_loss", "pred", _itself, {"loss": "giou"}),
    "BoxIoULoss": _of_pairs("BoxIoULoss", "target", _itself, {"loss": "eiou", "box_format": "cxcywh"}),
    "BoxIoULoss of a table": _of_pairs("BoxIoULoss", "target", _itself, {"loss": "giou"}, True),
    **{
        f"icr_terms: {term}": _of_pairs(
            "icr_terms", "pred", lambda terms, term=term: _weighted(getattr(terms, term)), {"penalty": "log"}
        )
        for term in icr.ICRTerms._fields
    },
    "icr_terms of a table of targets": _of_pairs("icr_terms", "target", lambda terms: _weighted(terms.loss), {}, True),
    "icr_terms of anchor_objects": _of_pairs("icr_terms", "anchor_objects", lambda terms: _weighted(terms.loss), {}),
    **{f"pairwise_iou, {kind}": _of_sets("boxes1", kind) for kind in ("iou", "giou", "containment", "pull_penalty")},
    "pairwise_iou of boxes2": _of_sets("boxes2", "inverse_penalty"),
}
# In Triton's interpreter, one of each operator and of a table.
OF_EACH_OPERATOR = ("icr_loss of pred", "icr_loss of anchor_objects", "icr_terms: containment", "pairwise_iou, giou")
every_function = pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for backend in COMPILED_BACKENDS
        for name in (OF_EACH_OPERATOR if backend in INTERPRETED else FUNCTIONS)
    ],
)


def every_function_in_each(ways: dict, some: tuple[str, ...]):
    """One of each operator in every way, and all functions in some; in Triton's interpreter one function in every
    way."""
    found = []
    for backend in COMPILED_BACKENDS:
        interpreted = backend in INTERPRETED
        fully = OF_EACH_OPERATOR[:1] if interpreted else OF_EACH_OPERATOR
        for name in OF_EACH_OPERATOR if interpreted else FUNCTIONS:
            found += [(name, way, backend) for way in (ways if name in fully else some)]
    return pytest.mark.parametrize(("name", "way", "backend"), found)


# Not differentiable as they are called; under a transform they are.
VALUES_AND_GRADIENTS = {
    "icr_loss_and_grad: loss": _of_pairs("icr_loss_and_grad", "pred", lambda result: result[0], {"loss": "giou"}),
    "icr_loss_and_grad: gradient": _of_pairs("icr_loss_and_grad", "pred", lambda result: result[1].norm(), {}),
}


def test_every_public_function_is_differentiated_here():
    differentiated = {name.split(",")[0].split(":")[0].split(" ")[0] for name in {**FUNCTIONS, **VALUES_AND_GRADIENTS}}
    assert differentiated | set(NOT_DIFFERENTIABLE) | OF_HEADS == set(icr.__all__)
    assert not differentiated & set(NOT_DIFFERENTIABLE)


def _direction(boxes: Tensor) -> Tensor:
    return torch.linspace(-1, 1, boxes.numel(), dtype=boxes.dtype, device=boxes.device).view_as(boxes)


def _with_gradient_penalty(function, boxes: Tensor, differentiate) -> Tensor:
    leaf = boxes.clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    return differentiate(value + gradient.square().sum(), leaf)


def _by_grad(function, boxes: Tensor) -> Tensor:
    return _with_gradient_penalty(function, boxes, lambda value, leaf: torch.autograd.grad(value, leaf)[0])


def _by_backward(function, boxes: Tensor) -> Tensor:
    def differentiate(value, leaf):
        value.backward()
        return leaf.grad

    return _with_gradient_penalty(function, boxes, differentiate)


def _by_backward_of_inputs(function, boxes: Tensor) -> Tensor:
    def differentiate(value, leaf):
        value.backward(inputs=[leaf])
        return leaf.grad

    return _with_gradient_penalty(function, boxes, differentiate)


def _by_inner_step(function, boxes: Tensor) -> Tensor:
    """As MAML does: the loss after a step of gradient descent, by the boxes before it."""
    leaf = boxes.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    return torch.autograd.grad(function(leaf - 0.1 * gradient), leaf)[0]


def _forward_over_reverse(function, boxes: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(boxes.clone().requires_grad_(), _direction(boxes))
        (gradient,) = torch.autograd.grad(function(dual), dual)
        return forward_ad.unpack_dual(gradient).tangent


def _by_forward_upstream(function, boxes: Tensor) -> Tensor:
    """A gradient from above that is a dual number: the tangent of the gradient is a gradient."""
    leaf = boxes.clone().requires_grad_()
    value = function(leaf)
    with forward_ad.dual_level():
        (gradient,) = torch.autograd.grad(
            value, leaf, forward_ad.make_dual(torch.ones_like(value), torch.ones_like(value))
        )
        return forward_ad.unpack_dual(gradient).tangent


# The kernels have no derivative beyond the first: an error.
SECOND = {
    "grad": _by_grad,
    "backward": _by_backward,
    "backward(inputs=)": _by_backward_of_inputs,
    "an inner step": _by_inner_step,
    "hessian": functional.hessian,
    "hessian, vectorized": functools.partial(functional.hessian, vectorize=True),
    "hvp": lambda f, x: functional.hvp(f, x, _direction(x))[1],
    "vhp": lambda f, x: functional.vhp(f, x, _direction(x))[1],
    "jvp by two backward passes": lambda f, x: functional.jvp(f, x, _direction(x))[1],
    "torch.func.hessian": lambda f, x: torch.func.hessian(f)(x),
    "jacrev of jacrev": lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x),
    "jvp of grad": lambda f, x: torch.func.jvp(torch.func.grad(f), (x,), (_direction(x),))[1],
    "grad of jvp": lambda f, x: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (_direction(x),))[1])(x),
    "jvp of jvp": lambda f, x: torch.func.jvp(
        lambda x: torch.func.jvp(f, (x,), (_direction(x),))[1], (x,), (_direction(x),)
    )[1],
    "forward over reverse": _forward_over_reverse,
    "dual upstream": _by_forward_upstream,
}


def _by_dual_numbers(function, boxes: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(boxes, _direction(boxes)))).tangent


def _several(boxes: Tensor) -> Tensor:
    return torch.stack((boxes, boxes + 0.25, boxes * 1.125), 1)


def _through_vmap(function, boxes: Tensor) -> Tensor:
    leaf = _several(boxes).requires_grad_()
    _weighted(torch.vmap(function, in_dims=1)(leaf)).backward()
    return leaf.grad


UNDER_TRANSFORMS = {
    "torch.func.grad": lambda f, x: torch.func.grad(f)(x),
    "torch.func.vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.full((), 3.0, dtype=x.dtype, device=x.device))[0],
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (_direction(x),))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "dual numbers": _by_dual_numbers,
    "vmap": lambda f, x: torch.vmap(f, in_dims=1)(_several(x)),
    "vmap of grad": lambda f, x: torch.vmap(torch.func.grad(f), in_dims=1)(_several(x)),
    "vmap of jvp": lambda f, x: torch.vmap(lambda x: torch.func.jvp(f, (x,), (_direction(x),))[1], in_dims=1)(
        _several(x)
    ),
    "jvp of vmap": lambda f, x: torch.func.jvp(torch.vmap(f, in_dims=1), (_several(x),), (_direction(_several(x)),))[1],
    "vmap of vmap": lambda f, x: torch.vmap(torch.vmap(f))(_several(_several(x)).movedim((1, 2), (0, 1))),
}
FIRST = {
    **UNDER_TRANSFORMS,
    "backward through vmap": _through_vmap,
    "jacobian": functional.jacobian,
    "jacobian, vectorized": functools.partial(functional.jacobian, vectorize=True),
    "jacobian, vectorized, with a graph": functools.partial(functional.jacobian, vectorize=True, create_graph=True),
    "jacobian, forward": functools.partial(functional.jacobian, vectorize=True, strategy="forward-mode"),
}


@functools.cache
def truth(name: str, way: str) -> Tensor:
    """By PyTorch's own differentiation of the reference."""
    function, boxes = {**FUNCTIONS, **VALUES_AND_GRADIENTS}[name]("cpu", "reference")
    result = {**FIRST, **SECOND}[way](function, boxes)
    assert result.any(), "a truth of zeros tells nothing"
    return result


@every_function_in_each(FIRST, ("torch.func.grad", "jvp", "vmap", "jacobian"))
def test_first_derivative(name, way, backend):
    function, boxes = FUNCTIONS[name](device_of(backend), backend)
    torch.testing.assert_close(FIRST[way](function, boxes).cpu(), truth(name, way), rtol=1e-9, atol=1e-12)


@every_function_in_each(SECOND, ("backward", "jvp of grad", "forward over reverse"))
def test_second_derivative_is_an_error(name, way, backend):
    assert truth(name, way).isfinite().all()
    function, boxes = FUNCTIONS[name](device_of(backend), backend)
    with pytest.raises(RuntimeError, match="no derivative beyond the first; pass backend='reference'"):
        SECOND[way](function, boxes)


@pytest.mark.parametrize(
    ("way", "backend"),
    [
        (way, backend)
        for backend in BACKENDS
        for way in (("torch.func.grad", "jvp", "vmap") if backend in INTERPRETED else UNDER_TRANSFORMS)
    ],
)
@pytest.mark.parametrize("name", VALUES_AND_GRADIENTS)
def test_loss_and_gradient_in_one_pass_under_transforms(name, way, backend):
    """Its gradient is a first derivative itself: to differentiate it is an error. Forward mode differentiates both."""
    function, boxes = VALUES_AND_GRADIENTS[name](device_of(backend), backend)
    is_forward = way in ("jvp", "jacfwd", "dual numbers", "vmap of jvp", "jvp of vmap")
    is_of_gradient = name.endswith("gradient") and way not in ("vmap", "vmap of vmap")
    if backend in COMPILED_BACKENDS and (is_forward or is_of_gradient):
        with pytest.raises(RuntimeError, match="no derivative beyond the first"):
            UNDER_TRANSFORMS[way](function, boxes)
    else:
        result = UNDER_TRANSFORMS[way](function, boxes).cpu()
        torch.testing.assert_close(result, truth(name, way), rtol=1e-9, atol=1e-12)


@every_function
def test_backward_pass_with_a_graph_that_nobody_differentiates(name, backend):
    function, boxes = FUNCTIONS[name](device_of(backend), backend)
    leaf = boxes.clone().requires_grad_()
    (plain,) = torch.autograd.grad(function(leaf), leaf)
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    assert torch.equal(gradient.detach(), plain)
    assert gradient.requires_grad
    gradient *= 2  # as gradients are clipped
    assert torch.equal(gradient.detach(), 2 * plain)


@every_backend
def test_derivatives_by_hand(backend):
    """GIoU is 2 - I/U - U/C; here I, U, C = 9, 23, 25. By x1 of the prediction 0, -4, -5; by x2 3, 1, 0."""
    pred, target = (box(*corners, device=device_of(backend)) for corners in ((0, 0, 4, 4), (1, 1, 5, 5)))

    def function(boxes: Tensor) -> Tensor:
        return icr.box_iou_loss(boxes, target, loss="giou", backend=backend)

    by_x1, by_x2 = -4 * 9 / 23**2 - (-4 * 25 + 5 * 23) / 25**2, -(3 * 23 - 9) / 23**2 - 1 / 25
    gradient = [by_x1, by_x1, by_x2, by_x2]
    assert torch.func.jvp(function, (pred,), (box(1, 0, 0, 0).to(pred),))[1].item() == pytest.approx(by_x1)
    for way in ("jacfwd", "jacrev", "torch.func.grad", "jacobian, vectorized"):
        assert FIRST[way](function, pred).flatten().tolist() == pytest.approx(gradient)


def test_second_derivative_of_the_reference():
    """Central differences of the gradient, (g(x + h g) - g(x - h g)) / 2h, are half the derivative of its square."""
    target = box(1, 1, 5, 5)

    def function(boxes: Tensor) -> Tensor:
        return icr.box_iou_loss(boxes, target, loss="giou", backend="reference")

    pred, h = box(0, 0, 4, 4), 1e-5
    gradient = torch.func.grad(function)
    slope = gradient(pred)
    along = (gradient(pred + h * slope) - gradient(pred - h * slope)) / (2 * h)
    torch.testing.assert_close(_by_grad(function, pred), slope + 2 * along, rtol=1e-7, atol=1e-9)
    assert _by_grad(function, pred).flatten().tolist() == pytest.approx([-0.0742, -0.0742, -0.1412, -0.1412], abs=5e-5)
    assert functional.hessian(function, pred).norm().item() == pytest.approx(0.0888, abs=5e-5)


# Graphs: what is traced keeps its derivative.


class _Module(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, boxes: Tensor) -> Tensor:
        return self.function(boxes)


@pytest.mark.parametrize(
    ("name", "strict", "backend"),
    [(OF_EACH_OPERATOR[0], strict, backend) for backend in ("reference", "cpu") for strict in (False, True)]
    + [(name, False, "cpu") for name in OF_EACH_OPERATOR[1:]]
    + [(OF_EACH_OPERATOR[0], False, backend) for backend in BACKENDS if backend not in ("reference", "cpu")],
)
def test_export(name, strict, backend):
    """Whether or not the boxes of the example require grad."""
    function, boxes = FUNCTIONS[name](device_of(backend), backend)
    for example in (boxes, boxes.clone().requires_grad_()):
        module = torch.export.export(_Module(function), (example,), strict=strict).module()
        leaf = boxes.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf), leaf)
        torch.testing.assert_close(gradient.cpu(), truth(name, "torch.func.grad"), rtol=1e-9, atol=1e-12)
        for way in ("torch.func.grad", "jvp"):
            torch.testing.assert_close(FIRST[way](module, boxes).cpu(), truth(name, way), rtol=1e-9, atol=1e-12)


@every_compiled_backend
@pytest.mark.parametrize("way", ["torch.func.grad", "jvp"])
def test_compiled_transforms_and_transforms_of_what_is_compiled(way, backend):
    name = "box_iou_loss"
    function, boxes = FUNCTIONS[name](device_of(backend), backend)
    compiled = torch.compile(functools.partial(FIRST[way], function), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(boxes).cpu(), truth(name, way), rtol=1e-9, atol=1e-12)
    torch._dynamo.reset()
    result = FIRST[way](torch.compile(function, backend="aot_eager"), boxes)
    torch.testing.assert_close(result.cpu(), truth(name, way), rtol=1e-9, atol=1e-12)


@every_compiled_backend
def test_linearized(backend):
    function, boxes = FUNCTIONS["icr_loss of pred"](device_of(backend), backend)
    value, tangent = torch.func.linearize(function, boxes)
    torch.testing.assert_close(value, function(boxes))
    torch.testing.assert_close(tangent(_direction(boxes)).cpu(), truth("icr_loss of pred", "jvp"))


@every_backend
def test_gradient_of_each_pair_by_vmap(backend):
    """Pairs without dimensions, each with its own row of either table."""
    given = _pairs(device_of(backend))
    table, index = given["anchor_objects"], given["anchor_index"]
    targets, target_index = as_table(given["target"])

    def function(*boxes_and_indices: Tensor, **options) -> Tensor:
        *boxes, target_index, index = boxes_and_indices
        indices = {"target_index": target_index, "anchor_index": index}
        return icr.icr_loss(*boxes, **indices, loss="giou", **{"backend": backend, **options})

    boxes = given["pred"], targets, table
    of_each = torch.vmap(torch.func.grad(function, argnums=(0, 1, 2)), in_dims=(0, None, None, 0, 0))
    of_pred, of_targets, of_table = of_each(*boxes, target_index, index)
    leaves = [rows.clone().requires_grad_() for rows in boxes]
    losses = function(*leaves, target_index, index, reduction="none", backend="reference")
    wanted = torch.autograd.grad(losses.sum(), leaves)
    torch.testing.assert_close(of_pred, wanted[0])
    torch.testing.assert_close(of_targets.sum(0), wanted[1])
    torch.testing.assert_close(of_table.sum(0), wanted[2])
    has_target = (target_index >= 0) & (target_index < len(targets))
    assert (of_targets[~has_target] == 0).all() and of_targets[has_target].any()
    assert (of_table[index < 0] == 0).all() and of_table[index >= 0].any()
