"""The register of what instructions do, and what several of them need."""

from collections.abc import Callable
from typing import Any

from .listing import Instruction, Operand, UnknownInstruction
from .machine import Machine, Scope, Step

Run = Callable[..., Any]
OPERATIONS: dict[str, tuple[Run, frozenset[str] | None]] = {}
CONTROL: set[str] = set()


def operation(names: str, modifiers: str = "", control: bool = False) -> Callable[[Run], Run]:
    """Registers what the instructions of these names do, and which modifiers of theirs it knows."""

    def register(run: Run) -> Run:
        for name in names.split():
            OPERATIONS[name] = (run, frozenset(modifiers.split()))
            if control:
                CONTROL.add(name)
        return run

    return register


# Instructions of the uniform datapath are those of lanes with a U before; these names begin with one of their own.
UNIFORM_RESULT = {"S2UR": "S2R"}


def decoded(each: Instruction) -> Step:
    name = UNIFORM_RESULT.get(each.name, each.name)
    is_uniform = name != each.name
    if name not in OPERATIONS and name.startswith("U") and name[1:] in OPERATIONS:
        name, is_uniform = name[1:], True
    run, known = OPERATIONS.get(name, (unknown, None))
    if known is not None and not known.issuperset(each.modifiers):
        run = unknown
    return Step(each, run, is_uniform, name in CONTROL and run is not unknown)


def unknown(machine: Machine, each: Instruction, scope: Scope) -> None:
    raise UnknownInstruction(f"at {each.address:#x}: {each.text}")


def split(each: Instruction, results: int = 1) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """Result registers, the predicates that are results beside them, and the sources."""
    heads, rest = list(each.operands[:results]), list(each.operands[results:])
    count = next((i for i, op in enumerate(rest) if op.kind not in ("P", "UP")), len(rest))
    return heads, rest[:count], rest[count:]


def rounding_of(each: Instruction) -> str:
    return next((name for name in ("RM", "RP", "RZ") if name in each.modifiers), "RN")
