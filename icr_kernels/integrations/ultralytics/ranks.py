"""One process per GPU: Ultralytics before 8.4.140 starts them with a script that imports the class of the trainer and
takes no callbacks along, so that each would train the stock loss (8.0.201 may run the user's script again instead).

There `enable_icr` and its like put a `Launch` in the place of ``model.train``. The class of the trainer that it makes
is found in this module by the script, which thereby learns of the callbacks; from which file, the environment says.
"""

import inspect
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .start import EVENT, Start

# Where the processes of the ranks read, pickled, on which path modules are found, as newer versions say it too (they
# would take an installed Ultralytics for a checkout); and, in a pickle of its own, which is read after that, the stock
# class of the trainer and the callbacks.
VARIABLE = "ICR_KERNELS_RANKS"
PREFIX = "RankOf"


def carry_callbacks() -> bool:
    """Whether the processes of the ranks are given the callbacks by the version that is imported."""
    from ultralytics.utils import dist

    return "callbacks" in dist.generate_ddp_file.__code__.co_names


class Launch:
    """Trains a model as it would be without, but with a trainer whose ranks find the callbacks."""

    def __init__(self, model: Any) -> None:
        self.model = model
        # One that somebody has put there before.
        self.before = vars(model).get("train")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        model = self.model
        train = self.before or type(model).train.__get__(model)
        load = model._smart_load
        if named.get("trainer"):
            named["trainer"] = _making(named["trainer"])
        elif arguments and next(iter(inspect.signature(train).parameters), None) == "trainer":
            arguments = (arguments[0] and _making(arguments[0]), *arguments[1:])
        # Nothing is handed over that a train of the user's might not take.
        model._smart_load = lambda key: _making(load(key)) if key == "trainer" else load(key)
        try:
            return train(*arguments, **named)
        finally:
            del model._smart_load


def _making(make: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the same trainer, of a class whose ranks find the callbacks."""

    def made(*arguments: Any, **named: Any) -> Any:
        trainer = make(*arguments, **named)
        if _starts_of(trainer) and not isinstance(trainer, WithRanks):
            trainer.__class__ = _with_ranks(trainer.__class__)
        return trainer

    return made


class WithRanks:
    """Before a trainer: in the user's process, and in those that it starts."""

    callbacks: dict[str, list]
    args: Any

    def train(self) -> Any:
        starts = _starts_of(self)
        if "LOCAL_RANK" in os.environ:
            if not starts:
                self.callbacks[EVENT].extend(_told()[1])
            return super().train()  # type: ignore[misc]
        if not starts or not _are_several(self.args.device):
            return super().train()  # type: ignore[misc]
        data = getattr(self, "data", None)
        if data:
            # What does not fit is said here, and not by each of the ranks.
            for start in starts:
                start.check(self, data["names"])
        pickled = self._to_tell(starts)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "told"
            file.write_bytes(pickled)
            os.environ[VARIABLE] = str(file)
            try:
                return super().train()  # type: ignore[misc]
            finally:
                del os.environ[VARIABLE]

    def _to_tell(self, starts: list[Start]) -> bytes:
        error: Exception | None = None
        try:
            pickled = pickle.dumps((type(self).__bases__[1], starts))
            if b"__main__" not in pickled:
                return pickle.dumps((sys.path, pickled))
        except Exception as raised:  # whatever the pickling of an object of the user's raises
            error = raised
        reason = "is of the script itself" if error is None else "cannot be pickled"
        raise ValueError(
            "device: expected one, because the processes of several are handed the class of the trainer and the loss "
            f"of the uniform term, and one of these {reason}, got {self.args.device}; put it into a module"
        ) from error


@cache
def _with_ranks(stock: Any) -> Any:
    return type(f"{PREFIX}{stock.__name__}", (WithRanks, stock), {"__module__": __name__})


def _starts_of(trainer: Any) -> list[Start]:
    return [each for each in trainer.callbacks.get(EVENT, ()) if isinstance(each, Start)]


def _are_several(device: Any) -> bool:
    return len(device) > 1 if isinstance(device, (list, tuple)) else "," in str(device)


def _told() -> tuple[type, list[Start]]:
    sys.path[:], pickled = pickle.loads(Path(os.environ[VARIABLE]).read_bytes())
    return pickle.loads(pickled)


def __getattr__(name: str) -> type:
    """What the script imports from here."""
    if name.startswith(PREFIX) and VARIABLE in os.environ:
        stock, _ = _told()
        return _with_ranks(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
