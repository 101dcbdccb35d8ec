"""Checks of numbers, flags and names. A message names the argument, says what was expected and what came."""

import math
import numbers

LARGEST = float.fromhex("0x1.fffffep+127")  # of float32


def number(
    argument: str, value: float, least: float = -LARGEST, most: float = LARGEST, expected: str = "a number"
) -> float:
    """Of Python or NumPy, within bounds, finite in float32 too. A tensor is none: reading one would make a GPU wait."""
    if type(value) is float and least <= value <= most:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Real)):
        raise TypeError(f"{argument}: expected {expected}, got {type(value).__name__}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf if value > 0 else -math.inf
    if not least <= value <= most:
        at_least = f" of at least {least:g}" if least > -LARGEST else ""
        bounds = f" from {least:g} to {most:g}" if most < LARGEST else f"{at_least} that is finite in float32"
        raise ValueError(f"{argument}: expected a number{bounds}, got {value!r}")
    return value


def flag(argument: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: expected True or False, got {type(value).__name__}")


def name(argument: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {value!r}")
