"""A model of transformers that has the penalty: switching it off, checkpoints, handles; what is refused."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import transformers

from icr_kernels.integrations import handle
from icr_kernels.integrations.transformers import enable_icr
from transformers_models import CLASSES, PAIRS, batch, model_of, step


def test_disable_and_enable_again():
    model, given = model_of("rt_detr"), batch()
    stock = step(model, given)[0].loss
    first = enable_icr(model, PAIRS, weight=5.0, penalty="pull")
    once = step(model, given)[0].loss
    second = enable_icr(model, PAIRS, weight=5.0, penalty="pull")
    assert step(model, given)[0].loss == once != stock
    assert first.statistics.steps == second.statistics.steps == 1
    second.disable()
    assert step(model, given)[0].loss == stock


def test_checkpoints_are_ordinary(tmp_path):
    """Weights load where this package cannot be imported, and a loaded model has the stock loss."""
    model, given = model_of("rt_detr"), batch()
    stock = step(model, given)[0].loss
    enable_icr(model, PAIRS, weight=5.0, penalty="pull")
    ours = step(model, given)[0].loss
    copied = copy.deepcopy(model)
    assert step(copied, given)[0].loss == ours
    torch.save(model, tmp_path / "whole.pt")
    assert step(torch.load(tmp_path / "whole.pt", weights_only=False), given)[0].loss == ours
    model.save_pretrained(tmp_path)
    loaded = transformers.RTDetrForObjectDetection.from_pretrained(tmp_path).train()
    assert step(loaded, given)[0].loss == stock
    script = (
        "import sys; sys.modules['icr_kernels'] = sys.modules['torchvision'] = None\n"
        "from transformers import RTDetrForObjectDetection\n"
        f"RTDetrForObjectDetection.from_pretrained({str(tmp_path)!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_handles_are_copied_and_pickled():
    """Alone a copy has the statistics; with its model it goes on counting, and so does what training loops store."""
    model, given = model_of("detr"), batch()
    icr_handle = enable_icr(model, PAIRS, weight=1.0)
    step(model, given)
    statistics = icr_handle.statistics
    for copied in copy.deepcopy(icr_handle), pickle.loads(pickle.dumps(icr_handle)):
        assert copied.statistics == statistics and repr(copied) == repr(icr_handle)
        copied.reset()
        assert copied.statistics.steps == 0
        with pytest.raises(RuntimeError, match="disable: expected the handle of a model, got a copy of one"):
            copied.disable()
    state = {"model": model, "icr": icr_handle}
    for copied in copy.deepcopy(state), pickle.loads(pickle.dumps(state)):
        step(copied["model"], given)
        assert copied["icr"].statistics[:4] == (2, 10, 4, 2)
    assert icr_handle.statistics == statistics
    icr_handle.disable()
    step(model, given)
    assert icr_handle.statistics == statistics


def test_after_inference():
    """Validation in inference mode leaves nothing that training could stumble over, and is not counted."""
    model, given = model_of("detr"), batch()
    handle = enable_icr(model, PAIRS)
    with torch.inference_mode():
        model.eval()(**given)
    assert handle.statistics.steps == handle.statistics.positives == 0
    step(model.train(), given)
    assert handle.statistics[:4] == (1, 5, 2, 1)


def test_no_pairs_for_long_is_worth_a_warning(monkeypatch):
    monkeypatch.setattr(handle, "STEPS_WITHOUT_PAIRS", 3)
    model, given = model_of("detr"), batch()
    enable_icr(model, {"tree": "plate"})
    step(model, given)
    step(model, given)
    with pytest.warns(UserWarning, match=r"in 3 training steps no part was paired with a whole; Relations\({'tree'"):
        step(model, given)
    for _ in range(4):
        step(model, given)


@pytest.mark.parametrize(
    ("pairs", "options", "error", "message"),
    [
        ({"licence": "car"}, {}, ValueError, "pairs: expected classes among car, plate, tree, got 'licence'"),
        (
            PAIRS,
            {"weight": -1.0},
            ValueError,
            "weight: expected a number of at least 0 that is finite in float32, got -1.0",
        ),
        (PAIRS, {"penalty": "overlap"}, ValueError, "penalty: expected one of containment"),
        (PAIRS, {"min_containment": 2}, ValueError, "min_containment: expected a number from 0 to 1, got 2"),
    ],
)
def test_errors(pairs, options, error, message):
    with pytest.raises(error, match=message):
        enable_icr(model_of("detr"), pairs, **options)


def test_models_that_are_no_detectors():
    with pytest.raises(TypeError, match="model: expected an object detection model of transformers, got Linear"):
        enable_icr(torch.nn.Linear(2, 2), PAIRS)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", **CLASSES)
    with pytest.raises(ValueError, match="model: expected a detector whose loss has a criterion with loss_boxes"):
        enable_icr(transformers.ResNetForImageClassification(config), PAIRS)


def test_missing_or_unsupported(monkeypatch):
    with pytest.raises(ImportError, match="no_such_framework is not installed; pip install 'no_such_framework>=1,<2'"):
        handle.framework("no_such_framework", "1", "2")
    # It is not always the module that was imported first: transformers replaces itself.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(
        ImportError, match=r"transformers: expected a version from 5\.0 on and below 6, got 4\.57\.1 in /"
    ):
        handle.framework("transformers", "5.0", "6")


def test_package_imports_without_the_framework():
    script = "import sys, icr_kernels.integrations; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
