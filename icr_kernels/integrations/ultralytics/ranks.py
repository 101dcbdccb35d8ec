"""One process per GPU: Ultralytics before 8.4.140 starts them with a script that imports the class of the trainer and
takes no callbacks along, so that each would train the stock loss.

There `enable_icr` puts a `Launch` in the place of ``model.train``. The class of the trainer that it makes is found in
this module by the script, which thereby learns of the callback; how, the environment says.
"""

import base64
import os
import pickle
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from .start import EVENT, Start

# What the processes of the ranks are told, pickled: where modules are found, as newer versions say it too, because they
# would take an installed Ultralytics for a checkout; and, in a pickle of its own, which is read after that, the stock
# class of the trainer and the callback.
VARIABLE = "ICR_KERNELS_RANKS"


def carry_callbacks() -> bool:
    """Whether the processes of the ranks are given the callbacks by the version that is imported."""
    from ultralytics.utils import dist

    return "callbacks" in dist.generate_ddp_file.__code__.co_names


class Launch:
    """Trains a model as its class does, but with a trainer whose ranks find the callback."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, trainer: Callable[..., Any] | None = None, *arguments: Any, **named: Any) -> Any:
        make = trainer or self.model._smart_load("trainer")

        def made(*arguments: Any, **named: Any) -> Any:
            found = make(*arguments, **named)
            if _start_of(found) is not None:
                found.__class__ = _with_ranks(found.__class__)
            return found

        return type(self.model).train(self.model, made, *arguments, **named)


class WithRanks:
    """Before a trainer, of the name of its class: in the user's process, and in those that it starts."""

    callbacks: dict[str, list]
    args: Any

    def train(self) -> Any:
        if VARIABLE in os.environ:
            self.callbacks[EVENT].append(_told()[1])
            return super().train()  # type: ignore[misc]
        if not _are_several(self.args.device):
            return super().train()  # type: ignore[misc]
        os.environ[VARIABLE] = self._to_tell()
        try:
            return super().train()  # type: ignore[misc]
        finally:
            del os.environ[VARIABLE]

    def _to_tell(self) -> str:
        stock = type(self).__mro__[2]
        error = None
        try:
            pickled = pickle.dumps((stock, _start_of(self)))
            if b"__main__" not in pickled:
                return base64.b64encode(pickle.dumps((sys.path, pickled))).decode()
        except (AttributeError, TypeError, pickle.PicklingError) as raised:
            error = raised
        raise ValueError(
            "device: expected one, because the processes of several cannot import a trainer, or a loss of the uniform "
            f"term, that is defined in the script itself or within a function, got {self.args.device}; put it into a "
            "module"
        ) from error


@cache
def _with_ranks(stock: Any) -> Any:
    return type(stock.__name__, (WithRanks, stock), {"__module__": __name__})


def _start_of(trainer: Any) -> Start | None:
    return next((each for each in trainer.callbacks.get(EVENT, ()) if isinstance(each, Start)), None)


def _are_several(device: Any) -> bool:
    return len(device) > 1 if isinstance(device, (list, tuple)) else "," in str(device)


def _told() -> tuple[type, Start]:
    sys.path[:], pickled = pickle.loads(base64.b64decode(os.environ[VARIABLE]))
    return pickle.loads(pickled)


def __getattr__(name: str) -> type:
    """What the script imports from here."""
    if VARIABLE in os.environ:
        stock, _ = _told()
        if name == stock.__name__:
            return _with_ranks(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
