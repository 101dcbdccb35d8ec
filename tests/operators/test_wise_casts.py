"""The running mean of a loss that is wise, in a model that is cast or moved."""

import pytest
import torch
from torch import nn

import icr_kernels as icr

WISE = icr.BoxLoss("iou", wise="v3")
MODULES = {"BoxIoULoss": icr.BoxIoULoss, "ICRLoss": icr.ICRLoss, "DetectionLoss": icr.DetectionLoss}
CASTS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to a dtype": lambda model: model.to(torch.bfloat16),
    "to a dtype and a device": lambda model: model.to("cpu", torch.float16),
    "type": lambda model: model.type(torch.HalfTensor),
    "one after the other": lambda model: model.half().float().bfloat16(),
}
# Neither half nor bfloat16 has it.
VALUE = torch.tensor(0.3)


def model_with(module: nn.Module) -> nn.Sequential:
    module.wise_mean.copy_(VALUE)
    return nn.Sequential(nn.Linear(2, 2), module)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", MODULES)
def test_a_cast_to_half_precision_leaves_every_digit(name, cast):
    model = CASTS[cast](model_with(MODULES[name](WISE)))
    assert model[0].weight.dtype in (torch.float16, torch.bfloat16)
    assert model[1].wise_mean.dtype == torch.float32 and model[1].wise_mean == VALUE
    assert model.state_dict()["1.wise_mean"].dtype == torch.float32


def test_double_precision_is_given_and_kept():
    model = model_with(icr.ICRLoss(WISE)).double()
    assert model[1].wise_mean.dtype == torch.float64
    model[1].wise_mean.fill_(0.1)
    assert model.half()[1].wise_mean.item() == 0.1
    assert model.float()[1].wise_mean.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_in_a_cast_model_goes_on_to_where_it_belongs(dtype):
    """Its steps are far below what half precision tells apart: 0.3 + 0.7 * 0.99^n after n of them."""
    module = nn.Sequential(icr.BoxIoULoss(WISE)).to(dtype)[0]
    pred, target = (torch.tensor([[0.0, 0, 10, side]], dtype=dtype) for side in (10, 7))
    for _ in range(1000):
        module(pred, target)
    assert module.wise_mean.item() == pytest.approx(0.3 + 0.7 * 0.99**1000, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_made_in_full_precision_whatever_the_default_is(dtype):
    before = torch.get_default_dtype()
    try:
        for default, expected in ((dtype, torch.float32), (torch.float64, torch.float64)):
            torch.set_default_dtype(default)
            assert icr.BoxIoULoss(WISE).wise_mean.dtype == expected
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "to a dtype", "one after the other"])
def test_the_meta_device_and_back(cast):
    """A model that is made without memory, cast, given memory and then its state."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), icr.BoxIoULoss(WISE))
    assert CASTS[cast](model)[1].wise_mean.is_meta
    model.to_empty(device="cpu")
    model.load_state_dict(model_with(icr.BoxIoULoss(WISE)).state_dict())
    assert model[1].wise_mean.dtype == torch.float32 and model[1].wise_mean == VALUE
    moved = model.to("meta", torch.float16)[1].wise_mean
    assert moved.is_meta and moved.dtype == torch.float32


def test_a_module_without_a_mean_is_cast_as_any_other():
    model = nn.Sequential(nn.Linear(2, 2), icr.BoxIoULoss("iou")).half()
    assert model[0].weight.dtype == torch.float16 and model[1].wise_mean is None
    weighted = icr.DetectionLoss(WISE, class_weight=torch.ones(3)).half()
    assert weighted.class_weight.dtype == torch.float16 and weighted.wise_mean.dtype == torch.float32
