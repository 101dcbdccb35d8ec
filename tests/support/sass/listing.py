"""The disassembly of machine code, as `cuobjdump -sass` prints that of sm_90, in parts."""

import re
from typing import NamedTuple

BYTES = 16  # bytes of an instruction
ZERO_REGISTER, ZERO_UNIFORM, TRUE = 255, 63, 7


class UnknownInstruction(Exception):
    """The machine code has an instruction, or a form of one, that nobody has written down here."""


class Operand(NamedTuple):
    kind: str  # R, UR, P, UP, B: registers; c: constant bank; memory; number; name
    index: int = 0
    text: str = ""
    negative: bool = False
    absolute: bool = False
    inverted: bool = False  # ~ of a register, ! of a predicate
    suffixes: tuple[str, ...] = ()
    terms: tuple["Operand", ...] = ()  # of an address, which is their sum


class Instruction(NamedTuple):
    address: int
    guard: Operand | None
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    text: str


REGISTER = re.compile(r"(UR|R|UP|P|B)(\d+|Z|T)((?:\.\w+)*)$")
NUMBER = re.compile(r"[+-]?(?:0x[0-9a-f]+|[\d.]+(?:e[+-]?\d+)?|INF|QNAN|SNAN)$", re.IGNORECASE)


def operand(text: str) -> Operand:
    text = text.strip().replace(".reuse", "")
    if NUMBER.match(text):
        return Operand("number", text=text)
    negative = absolute = inverted = False
    while text[0] in "-~!|":
        negative |= text[0] == "-"
        inverted |= text[0] in "~!"
        absolute |= text[0] == "|"
        text = text[1:].rstrip("|") if text[0] == "|" else text[1:]
    signs = {"negative": negative, "absolute": absolute, "inverted": inverted}
    if match := REGISTER.match(text):
        kind, number, suffixes = match.groups()
        index = {"Z": ZERO_UNIFORM if kind == "UR" else ZERO_REGISTER, "T": TRUE}.get(number) or int(number)
        return Operand(kind, index, text, suffixes=tuple(suffixes.split(".")[1:]), **signs)
    if match := re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[(.*)\]((?:\.\w+)*)", text):
        bank, address, suffixes = match.groups()
        return Operand(
            "c", int(bank, 16), text, suffixes=tuple(suffixes.split(".")[1:]), terms=sum_of(address), **signs
        )
    if match := re.fullmatch(r"(?:desc\[\w+\])?\[(.*)\]", text):
        return Operand("memory", text=text, terms=sum_of(match[1]))
    return Operand("name", text=text, **signs)


def sum_of(address: str) -> tuple[Operand, ...]:
    return tuple(operand(term) for term in re.sub(r"(?<=[\w\]])-", "+-", address).split("+"))


def instruction(address: int, text: str) -> Instruction:
    match = re.match(r"(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*)$", text)
    if match is None:
        raise UnknownInstruction(text)
    guard, opcode, rest = match.groups()
    name, *modifiers = opcode.split(".")
    operands = [operand(part) for part in re.split(r",\s*(?![^\[]*\])", rest.strip()) if part.strip()]
    if name in ("BRX", "RET"):  # their operands stand side by side
        operands = [operand(part) for part in rest.split()]
    return Instruction(address, guard and operand(guard), name, tuple(modifiers), tuple(operands), text)


def kernels(listing: str) -> dict[str, list[Instruction]]:
    """The instructions of every function in what `cuobjdump -sass` prints, by its mangled name."""
    found: dict[str, list[Instruction]] = {}
    for line in listing.splitlines():
        if match := re.match(r"\s+Function : (\S+)", line):
            code = found.setdefault(match[1], [])
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            code.append(instruction(int(match[1], 16), match[2]))
    return found
