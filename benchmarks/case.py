"""What a case is: one operation on inputs of one shape, this package's function for it and the code others run today.

Everybody gets the same valid boxes and is asked for the same result; what is compiled is compiled before it is timed.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from icr_kernels.backends import BACKENDS, Backend

Inputs = tuple[Tensor, ...]
Function = Callable[..., Any]
Call = Callable[[], Any]

COPY, FILL = "copy", "fill"
DROP_IN = "drop-in"  # this package's module in the place of another one
FORWARD, BOTH = "forward", "forward + backward"


class LeftOut(Exception):
    """Why a peer is not measured in this case."""


def forward(function: Function, inputs: Inputs) -> Call:
    return lambda: function(*inputs)


def step(function: Function, inputs: Inputs) -> Call:
    """Forward and backward. The gradients of the last step go first, as an optimiser's zero_grad does it."""

    def run() -> Tensor:
        no_gradients(inputs)
        value = function(*inputs)
        value.backward()
        return value

    return run


def no_gradients(inputs: Inputs) -> None:
    for each in inputs:
        each.grad = None


@dataclass(frozen=True, eq=False)  # a case is itself: results are cached by it
class Case:
    """``truth`` is the right result, ``agrees`` compares a function's with it. ``quantities`` says what is timed; a
    training step may have a second one, its loss alone. Floor and memory are those of the first. ``full`` cases take
    part in the full profile only, those that ``scale`` are measured there on fewer threads too; where ``memory`` is set
    the peak is measured, and with it, where ``operators`` is, how many of PyTorch's operators a call takes, how many
    of them are views, and for how many a host would wait."""

    name: str
    shape: str
    pairs: int
    inputs: Callable[[], Inputs]
    ours: Callable[[str], Function]
    peers: Mapping[str, Callable[[], Function]]
    truth: Callable[[Inputs], Any]
    agrees: Callable[[Function, Inputs, Any], bool]
    quantities: Mapping[str, Callable[[Function, Inputs], Call]] = field(default_factory=lambda: {FORWARD: forward})
    dtype: str = "float32"
    bytes_per_pair: float | None = None
    full: bool = False
    scales: bool = False
    memory: bool = False
    operators: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.shape}, {self.dtype}"

    @property
    def quantity(self) -> str:
        return next(iter(self.quantities))

    def loaders(self, device: str) -> dict[str, Callable[[], Function]]:
        """The backends that run there and the peers, each to be loaded when it is measured."""

        def load(backend: Backend) -> Function:
            obstacle = backend.obstacle(device)
            if obstacle is not None:
                raise LeftOut(obstacle)
            return self.ours(backend.name)

        ours = {backend.name: functools.partial(load, backend) for backend in BACKENDS if device in backend.devices}
        return {**ours, **self.peers}

    def inputs_on(self, device: str) -> Inputs:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

        return tuple(map(moved, self.inputs()))


def loaded(load: Callable[[], Function]) -> Function | str:
    """What is to be measured, or why it is not there."""
    try:
        return load()
    except LeftOut as reason:
        return f"left out: {reason}"
    except Exception as error:  # whatever a package that does not fit this torch raises when it is imported
        return f"absent: {first_line(error)}"


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]


def copy(count: float, device: str = "cpu") -> Call:
    """The floor: a copy whose reads and writes together are so many bytes."""
    source = torch.rand(max(round(count / 8), 1), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


@functools.cache
def torchvision(name: str) -> Any:
    """A member of torchvision, as in "ops.box_iou"."""
    from .torchvision_without_extension import make_importable

    make_importable()
    module, _, member = name.rpartition(".")
    return getattr(importlib.import_module(f"torchvision.{module}"), member)


def constant(function: Function) -> Callable[[], Function]:
    return lambda: function


def with_compiled(peers: Mapping[str, Callable[[], Function]], *names: str) -> dict[str, Callable[[], Function]]:
    """The peers, and those named "eager, ..." as torch.compile makes them, for one shape and for any."""
    result = dict(peers)
    for name in names:
        for word, dynamic in (("dynamic", True), ("static", False)):

            def load(of: str = name, dynamic: bool = dynamic) -> Function:
                return torch.compile(peers[of](), dynamic=dynamic)

            result[f"torch.compile, {name.removeprefix('eager, ')}, {word}"] = functools.cache(load)
    return result
