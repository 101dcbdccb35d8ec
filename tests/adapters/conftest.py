"""Ultralytics as the tests of its adapter use it."""

import importlib
from pathlib import Path

import pytest

from benchmarks.torchvision_without_extension import make_importable
from icr_kernels.integrations.ultralytics.start import EVENT
from ultralytics_training import (
    data_set,
    environment,
)


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    """Imported late, because it changes settings of torch and numpy, and with a place of its own for its files."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("settings") / "ultralytics").items():
            patch.setenv(name, value)
        make_importable()
        yield importlib.import_module("ultralytics")


@pytest.fixture(scope="module")
def _yolo(ultralytics):
    return ultralytics.YOLO("yolo11n.yaml")


@pytest.fixture
def yolo(_yolo):
    """What `enable_icr` is given where a test trains a network without its trainer. What it has switched on ends with
    it."""
    yield _yolo
    _yolo.callbacks[EVENT].clear()


@pytest.fixture(scope="module")
def data(ultralytics, tmp_path_factory) -> Path:
    """A set of images of cars, trucks and plates."""
    return data_set(tmp_path_factory.mktemp("plates"))
