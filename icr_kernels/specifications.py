"""What ``loss=`` and ``penalty=`` may be instead of a name: a variant with its numbers, and what modifies it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import checks
from .variants import (
    COMMON_LOSS_NAMES,
    DISTANCES,
    LOSS_BY_NAME,
    LOSS_IDS,
    LOSS_NAMES,
    MOST_PARAMETERS,
    NO_PENALTY,
    PENALTY_BY_NAME,
    PENALTY_IDS,
    PENALTY_NAMES,
    Variant,
)

# Bits of the modifiers of a loss, as csrc/modifiers.h knows them.
INNER, FOCALER, WISE2, WISE3 = 1, 2, 4, 8
_WISE = {"v2": (0.5,), "v3": (1.9, 3.0)}


@dataclass(frozen=True, init=False, repr=False)
class BoxLoss:
    """A box loss with its numbers, wherever ``loss=`` takes a name: ``BoxLoss("mpdiou", width=1280, height=720)``.

    Args:
        name: of a loss, as ``loss=`` takes it.
        inner: a ratio r from 0.05 to 20. The IoU in the loss becomes that of both boxes with sides r times as long
            about their centres: L + IoU - IoU_inner (Zhang et al. 2023, Inner-IoU, arXiv 2311.02877).
        focaler: two numbers d and u from 0 to 1, u at least 0.01 above d. The IoU in the loss becomes
            min(max((IoU - d)/(u - d), 0), 1): L + IoU - IoU_focaler (Zhang and Zhang 2024, Focaler-IoU, arXiv
            2401.10525). With ``inner`` it is made of IoU_inner.
        wise: "v2", or ("v2", gamma) with another gamma than 0.5: the loss times beta^gamma; "v3", or ("v3", alpha,
            delta) with others than 1.9 and 3: times beta/(delta alpha^(beta - delta)). beta = (1 - IoU)/mean is
            constant under differentiation, ``mean`` the running mean of 1 - IoU, which the modules keep and functions
            take as ``wise_mean=`` (Tong et al. 2023, Wise-IoU, arXiv 2301.10051, whose v1 is the loss "wiou").
        parameters: numbers of that loss by name; docs/losses.md has them, with bounds. A length or an area is in pixels
            where ``scale=`` says how many a unit of the boxes has, and in the unit of the boxes otherwise.

    It cannot be changed, and equal ones are equal. Another number never compiles anything anew, but in a graph of
    `torch.compile`.

    Raises:
        TypeError: a parameter that the loss does not have, or that is no number.
        ValueError: an unknown name, or a number out of bounds.
    """

    name: str
    parameters: tuple[float, ...]
    inner: float | None
    focaler: tuple[float, float] | None
    wise: tuple[Any, ...] | None
    numbers: tuple[float, ...]
    modifiers: int

    def __init__(
        self,
        name: str,
        *,
        inner: float | None = None,
        focaler: Sequence[float] | None = None,
        wise: str | Sequence[Any] | None = None,
        **parameters: float,
    ) -> None:
        checks.name("loss", name, LOSS_NAMES)
        values = _numbers_of(LOSS_BY_NAME[name], parameters)
        modifiers = 0
        for argument, given in (("inner", inner), ("focaler", focaler), ("wise", wise)):
            if given is not None and name in DISTANCES:
                raise ValueError(f"{argument}: expected None with loss {name!r}, which has no IoU to modify")
        if inner is not None:
            inner = checks.number("inner", inner, 0.05, 20)
            modifiers |= INNER
        if focaler is not None:
            focaler = _focaler(focaler)
            modifiers |= FOCALER
        if wise is not None:
            wise = _wise(wise)
            modifiers |= WISE2 if wise[0] == "v2" else WISE3
        numbers: tuple[float, ...] = ()
        if modifiers or name not in COMMON_LOSS_NAMES:
            of_wise = (0.0, 0.0) if wise is None else (wise[1], 0.0) if len(wise) == 2 else (math.log(wise[1]), wise[2])
            padding = (0.0,) * (MOST_PARAMETERS - len(values))
            numbers = (*values, *padding, inner or 1.0, *(focaler or (0.0, 1.0)), *of_wise)
        for field, value in (
            ("name", name),
            ("parameters", values),
            ("inner", inner),
            ("focaler", focaler),
            ("wise", wise),
            ("numbers", numbers),
            ("modifiers", modifiers),
        ):
            object.__setattr__(self, field, value)

    @property
    def number(self) -> int:
        return LOSS_IDS[self.name]

    @property
    def packed(self) -> tuple[float, ...]:
        """As csrc/autograd.cpp reads it."""
        return self.number, self.modifiers, *self.numbers

    def __repr__(self) -> str:
        named = zip(LOSS_BY_NAME[self.name].parameters, self.parameters, strict=True)
        options = [f"{parameter.name}={value!r}" for parameter, value in named if value != parameter.default]
        modifiers = (("inner", self.inner), ("focaler", self.focaler), ("wise", self.wise))
        options += [f"{name}={value!r}" for name, value in modifiers if value is not None]
        return f"BoxLoss({', '.join([repr(self.name), *options])})"


@dataclass(frozen=True, init=False, repr=False)
class Penalty:
    """A penalty with its number, wherever ``penalty=`` takes a name: ``Penalty("log", clamp=0.1)``.

    Args:
        name: of a penalty, as ``penalty=`` takes it.
        parameters: "inverse" and "log" have ``clamp``, the least containment that counts, from 1e-6 to 1; by default
            0.1 and 0.01.

    Raises:
        TypeError: a parameter that the penalty does not have, or that is no number.
        ValueError: an unknown name, or a number out of bounds.
    """

    name: str
    parameters: tuple[float, ...]

    def __init__(self, name: str, **parameters: float) -> None:
        checks.name("penalty", name, PENALTY_NAMES)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parameters", _numbers_of(PENALTY_BY_NAME[name], parameters))

    @property
    def number(self) -> int:
        return PENALTY_IDS[self.name]

    @property
    def packed(self) -> tuple[float, ...]:
        """As csrc/autograd.cpp reads it."""
        return self.number, *(self.parameters or (0.0,))

    def __repr__(self) -> str:
        values = "".join(f", clamp={value!r}" for value in self.parameters)
        return f"Penalty({self.name!r}{values})"


def _numbers_of(variant: Variant, given: dict[str, float]) -> tuple[float, ...]:
    """The parameters of a variant in their order."""
    known = [parameter.name for parameter in variant.parameters]
    for name in given:
        if name not in known:
            expected = f"one of the parameters of {variant.name!r}, {', '.join(known)}" if known else "no parameter"
            raise TypeError(f"{name}: expected {expected}" + ("" if known else f" with {variant.name!r}"))
    return tuple(
        checks.number(parameter.name, given.get(parameter.name, parameter.default), parameter.least, parameter.most)
        for parameter in variant.parameters
    )


def _focaler(given: Sequence[float]) -> tuple[float, float]:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(f"focaler: expected two numbers (d, u), got {given!r}")
    low, high = (checks.number("focaler", each, 0, 1) for each in given)
    if high - low < 0.01:
        raise ValueError(f"focaler: expected u at least 0.01 above d, got {low!r} and {high!r}")
    return low, high


def _wise(given: str | Sequence[Any]) -> tuple[Any, ...]:
    parts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, (tuple, list)) else ()
    version = parts[0] if parts else None
    if version == "v1":
        raise ValueError("wise: expected 'v2' or 'v3', got 'v1', which is the loss 'wiou'")
    if not isinstance(version, str) or version not in _WISE or len(parts) not in (1, 1 + len(_WISE[version])):
        raise ValueError(f"wise: expected 'v2', 'v3', ('v2', gamma) or ('v3', alpha, delta), got {given!r}")
    first, *rest = parts[1:] or _WISE[version]
    if version == "v2":
        return version, checks.number("wise gamma", first, 0, 3)
    return version, checks.number("wise alpha", first, 1.01, 3), checks.number("wise delta", rest[0], 0.01, 10)


_LOSSES = {name: BoxLoss(name) for name in LOSS_NAMES}
_PENALTIES = {name: Penalty(name) for name in PENALTY_NAMES}


def _no_penalty() -> Penalty:
    """Nobody can ask for it by its name; it stands where there are no anchor objects."""
    penalty = object.__new__(Penalty)
    penalty.__dict__.update(name=NO_PENALTY, parameters=())
    return penalty


_PENALTIES[NO_PENALTY] = _no_penalty()


def box_loss(loss: str | BoxLoss) -> BoxLoss:
    """The specification of a known name."""
    return loss if isinstance(loss, BoxLoss) else _LOSSES[loss]


def with_parameters(name: str, parameters: tuple[float, ...]) -> BoxLoss:
    """A loss with its parameters in their order."""
    names = (parameter.name for parameter in LOSS_BY_NAME[name].parameters)
    named: dict[str, Any] = dict(zip(names, parameters, strict=True))
    return BoxLoss(name, **named)


def penalty(penalty: str | Penalty) -> Penalty:
    return penalty if isinstance(penalty, Penalty) else _PENALTIES[penalty]
