"""Of the Triton kernels no number is compiled in."""

import pytest
import torch
from torch import Tensor

import inputs
from detection_scenes import LOGITS, detection_scene
from icr_kernels import BoxLoss, Penalty
from icr_kernels.calls import DetectionFormula, Formula, PairFunction
from icr_kernels.variants import REDUCTION_IDS

if "triton" not in inputs.BACKENDS:
    pytest.skip("Triton is not there", allow_module_level=True)

import triton.language as tl

from icr_kernels import triton_kernels

operators = triton_kernels.operators
DEVICE = inputs.device_of("triton")
ALL_MODIFIERS = {"inner": 0.8, "focaler": (0.0, 0.95), "wise": ("v3", 1.7, 2.0)}


@pytest.fixture
def launches(monkeypatch):
    """Each launch: its kernel, what it is given by position, and what is compiled in."""
    found, launch = [], operators.launch

    def record(kernel, programs, *arguments, **constants):
        found.append((kernel, arguments, constants))
        launch(kernel, programs, *arguments, **constants)

    for module in (operators, triton_kernels.pairwise_operators, triton_kernels.detection_operators):
        monkeypatch.setattr(module, "launch", record)
    return found


@pytest.mark.parametrize("what", ["loss", "terms", "matrix", "head"])
def test_another_number_compiles_nothing_anew(what, launches):
    """What is compiled in stays, and what changes is a double, of which Triton looks at no value."""
    boxes, scene, mean = inputs.pairs(8, device=DEVICE), detection_scene(0), torch.tensor(0.4, device=DEVICE)
    of_head = *(scene[name] for name in (*LOGITS, "points", "strides", "truth", "labels")), *scene["assignment"]
    of_head = [each.to(DEVICE) for each in (*of_head, scene["anchor_index"])]

    def call(loss: BoxLoss, penalty: Penalty, number: float) -> None:
        formula = Formula(loss, penalty, penalty_weight=number, eps=number / 10)
        if what == "loss":
            tensors = *boxes, *(None,) * 5, mean, None
            triton_kernels.loss(*tensors, number, REDUCTION_IDS["sum"], formula.packed(), 3, False)
        elif what == "terms":
            triton_kernels.terms(*boxes, *(None,) * 4, mean, formula.packed())
        elif what == "matrix":
            triton_kernels.pairwise(*boxes[:2], PairFunction(loss.name, "xyxy", number, loss.parameters).packed())
        else:
            options = DetectionFormula(formula, number, number, number, number, True, number, number)
            triton_kernels.detection_loss(*of_head, None, mean, None, options.packed())

    call(BoxLoss("mpdiou", **ALL_MODIFIERS), Penalty("log"), 0.5)
    other = {"inner": 1.0, "focaler": (0.5, 1.0), "wise": ("v3", 1.5, 1.0)}
    call(BoxLoss("mpdiou", width=1.0, height=16.0, **other), Penalty("log", clamp=1.0), 1.0)
    count = len(launches) // 2
    for (kernel, one, compiled), (again, another, compiled_again) in zip(
        launches[:count], launches[count:], strict=True
    ):
        assert kernel is again and compiled == compiled_again
        for name, first, second in zip(kernel.arg_names, one, another, strict=False):
            if isinstance(first, float):
                assert kernel.fn.__annotations__[name] == tl.float64
            elif not isinstance(first, (Tensor, tuple)):
                assert first == second
