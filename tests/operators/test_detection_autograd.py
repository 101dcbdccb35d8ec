"""The loss of a dense head and what differentiates, compiles and launches it."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import icr_kernels as icr
from detection_scenes import (
    LOGITS,
    WEIGHTS,
    assert_as_reference,
    detection_loss,
    detection_scene,
    evaluated,
    leaves,
    on_device_of,
)
from inputs import (
    EMULATED,
    device_of,
    every_backend,
    every_compiled_backend,
    every_quick_backend,
    every_quick_compiled_backend,
)
from operator_calls import OperatorCalls, operators_of_heads
from tolerances import assert_close, same_bits


@every_backend
def test_each_term_has_a_gradient_of_its_own(backend):
    scene = leaves(on_device_of(backend, detection_scene(17)))
    terms = detection_loss(scene, backend, penalty="containment")
    wanted = [scene[name] for name in LOGITS]
    for number, term in enumerate(terms):
        gradients = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert [bool((gradient != 0).any()) for gradient in gradients] == [number != 1, number == 1]
    gains = torch.tensor([0.5, 2.0, 3.0, 4.0], device=device_of(backend), requires_grad=True)
    total = (torch.stack(terms) * gains).sum()
    of_gains, *both = torch.autograd.grad(total, (gains, *wanted), retain_graph=True)
    assert_close(of_gains, torch.stack(terms).detach(), "gains")
    again = torch.autograd.grad(total, wanted)
    assert all(same_bits(a, b) for a, b in zip(both, again, strict=True))


@every_backend
def test_a_term_leaves_logits_alone_that_it_does_not_depend_on(backend):
    for number, name in enumerate(LOGITS):
        scene = detection_scene(30)
        scene[name] = torch.full_like(scene[name], math.nan)
        scene = leaves(scene)
        terms = detection_loss(scene, backend)
        term = terms.classification if name == "box_logits" else terms.box
        assert term.isfinite()
        gradients = torch.autograd.grad(term, [scene[each] for each in LOGITS], allow_unused=True)
        assert gradients[number] is None
        assert gradients[1 - number].isfinite().all() and (gradients[1 - number] != 0).any()


@pytest.mark.parametrize("name", LOGITS)
@every_compiled_backend
def test_only_what_is_wanted(backend, name):
    scene = detection_scene(18)
    expected = evaluated(scene, backend)[1 + LOGITS.index(name)]
    scene[name] = scene[name].clone().requires_grad_()
    terms = detection_loss(scene, backend)
    sum(weight * term for weight, term in zip(WEIGHTS, terms, strict=True)).backward()
    assert same_bits(scene[name].grad, expected)
    with torch.no_grad():
        assert not any(term.requires_grad for term in detection_loss(scene, backend))


@every_compiled_backend
def test_a_second_derivative_is_an_error(backend):
    scene = leaves(on_device_of(backend, detection_scene(19)))
    (gradient,) = torch.autograd.grad(
        detection_loss(scene, backend).box, scene["box_logits"], create_graph=True, retain_graph=True
    )
    with pytest.raises(RuntimeError, match="no derivative beyond the first"):
        gradient.sum().backward()
    boxes = icr.decode_boxes(*(scene[name] for name in ("box_logits", "points", "strides")), backend=backend)
    (gradient,) = torch.autograd.grad(boxes.sum(), scene["box_logits"], create_graph=True)
    with pytest.raises(RuntimeError, match="no derivative beyond the first"):
        gradient.sum().backward()


@every_quick_backend
def test_tangents_are_those_of_the_reference(backend):
    scene = detection_scene(20, dtype=torch.float64)
    tangent = torch.randn(scene["box_logits"].shape, dtype=torch.float64)

    def box(name: str):
        given = on_device_of(name, scene | {"tangent": tangent})
        along = given.pop("tangent")
        return torch.func.jvp(
            lambda logits: detection_loss(given | {"box_logits": logits}, name).box, (given["box_logits"],), (along,)
        )

    for found, truth in zip(box(backend), box("reference"), strict=True):
        torch.testing.assert_close(found.cpu(), truth)


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones((), dtype=x.dtype, device=x.device))[0],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "vmap of grad": lambda f, x: torch.vmap(torch.func.grad(f))(torch.stack((x, x)))[1],
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", LOGITS)
@every_quick_compiled_backend
def test_under_transforms(backend, name, transform):
    """What autograd makes of the kernels."""
    scene = on_device_of(backend, detection_scene(20, dtype=torch.float64, size=32, most=4, bins=2, classes=2))

    def function(logits: Tensor) -> Tensor:
        return sum(detection_loss(scene | {name: logits}, backend, penalty="log"))

    def of_boxes(logits: Tensor) -> Tensor:
        return icr.decode_boxes(logits, scene["points"], scene["strides"], backend=backend).square().sum()

    for each in (function, of_boxes) if name == "box_logits" else (function,):
        leaf = scene[name].detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(each(leaf), leaf)
        torch.testing.assert_close(transform(each, scene[name]), expected)


@every_compiled_backend
@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")
def test_operators_keep_the_contract_of_the_dispatcher(backend):
    """Schema, fake kernels with static and dynamic shapes, and the way through AOTAutograd, for each operator."""
    with OperatorCalls() as calls:
        for is_channels_first, dtype in ((True, torch.float32), (False, torch.float16)):
            scene = on_device_of(
                backend, detection_scene(28, size=32, is_channels_first=is_channels_first, dtype=dtype)
            )
            options = {"class_weight": torch.ones(5), "normalizer": torch.tensor(3.0)} if is_channels_first else {}
            evaluated(scene, backend, penalty="containment", **options)
            leaf = scene["box_logits"].clone().requires_grad_()
            icr.decode_boxes(leaf, scene["points"], scene["strides"], backend=backend).sum().backward()
    assert {operator.name() for operator, *_ in calls.found} == operators_of_heads(backend)
    for operator, arguments, _ in calls.found:
        arguments = [each.detach() if isinstance(each, Tensor) else each for each in arguments]
        torch.library.opcheck(operator, tuple(arguments))


@every_quick_compiled_backend
def test_few_operators_and_no_synchronisation(backend):
    """Assignment included, forward and backward."""

    class Calls(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if all(each.alias_info is None for each in operator._schema.returns):  # no view
                self.names.append(operator.name())
            return operator(*args, **(kwargs or {}))

    scene = leaves(on_device_of(backend, detection_scene(29) | {"assignment": None}))
    total = torch.ones(4, device=device_of(backend))
    with Calls() as calls:
        terms = detection_loss(scene, backend)
        torch.autograd.backward(terms, tuple(total.unbind()))
    of_ours = {name.rpartition("::")[2].removeprefix("emulated_") for name in calls.names}
    assert of_ours >= {"decoded", "assigned", "detection_loss", "detection_loss_backward"}
    assert len(calls.names) == 4, calls.names
    waits = ("_local_scalar_dense", "nonzero", "unique", "item", "masked_select", "index_put")
    assert not [name for name in calls.names if any(wait in name for wait in waits)]


@every_quick_compiled_backend
def test_in_a_graph(backend):
    """Of a compiler that knows shapes alone, assignment included."""
    scene = leaves(detection_scene(21) | {"assignment": None})
    torch._dynamo.reset()
    compiled = torch.compile(detection_loss, fullgraph=True, backend="aot_eager")
    found, expected = compiled(scene, backend), detection_loss(scene, backend)
    assert all(same_bits(a.detach(), b.detach()) for a, b in zip(found, expected, strict=True))
    wanted = [scene[name] for name in LOGITS]
    gradients = [torch.autograd.grad(sum(terms), wanted) for terms in (found, expected)]
    assert all(same_bits(a, b) for a, b in zip(*gradients, strict=True))
    torch._dynamo.reset()


def test_autocast_does_not_lower_it():
    scene = detection_scene(22)
    expected = evaluated(scene, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = evaluated(scene, "cpu")
    assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


# Launches


@pytest.mark.skipif(EMULATED is None, reason="no emulated GPU here")
def test_launches_and_the_order_of_blocks():
    scene = leaves(detection_scene(24, size=128) | {"assignment": None})
    device, results = EMULATED.device, []
    multiprocessors = device.multiprocessors
    for order in (EMULATED.Order.forward, EMULATED.Order.backward, EMULATED.Order.shuffled):
        device.order, device.launches, device.memsets = order, 0, 0
        terms = detection_loss(scene, "emulated")
        assert (device.launches, device.memsets) == (1 + 4 + 3, 0)
        gradients = torch.autograd.grad(sum(terms), [scene[name] for name in LOGITS])
        assert (device.launches, device.memsets) == (1 + 4 + 3 + 2, 0)
        results.append([*(term.detach() for term in terms), *gradients])
    device.order = EMULATED.Order.forward
    assert all(same_bits(a, b) for found in results[1:] for a, b in zip(found, results[0], strict=True))
    device.multiprocessors = 1  # each thread then has several pieces
    try:
        assert_as_reference(detection_scene(24, size=416), "emulated", penalty="containment")
    finally:
        device.multiprocessors = multiprocessors


@pytest.mark.skipif(EMULATED is None, reason="no emulated GPU here")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("decode", "the launch for a head's boxes failed"),
        ("loss", "a launch for a detection loss failed"),
        ("gradient", "a launch for the gradient of a detection loss failed"),
    ],
)
def test_a_launch_that_fails_says_which(what, message):
    scene = leaves(detection_scene(25))
    terms = detection_loss(scene, "emulated")
    EMULATED.device.fails = True
    try:
        with pytest.raises(RuntimeError, match=message):
            if what == "gradient":
                terms.box.backward()
            else:
                detection_loss(scene | ({"assignment": None} if what == "decode" else {}), "emulated")
    finally:
        EMULATED.device.fails = False
