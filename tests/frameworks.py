"""Frameworks whose adapters are tested. A user's machine may lack them; continuous integration may not."""

import importlib.util
import os

import pytest

ALL = os.environ.get("ICR_KERNELS_ALL_FRAMEWORKS") == "1"


def need(name: str) -> None:
    """Skips the module's tests where a framework is not installed, unless all of them are to be there."""
    if importlib.util.find_spec(name) is None:
        reason = f"{name} is not installed; `make test` installs it"
        if ALL:
            raise ModuleNotFoundError(reason)
        pytest.skip(reason, allow_module_level=True)
