"""Structs of C++ headers as ctypes, so that what a test hands to a kernel has the layout that the kernel has."""

import ctypes
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]

PLAIN = {"bool": ctypes.c_bool, "int": ctypes.c_int32, "unsigned": ctypes.c_uint32, "int64_t": ctypes.c_int64}
PLAIN |= {"float": ctypes.c_float, "double": ctypes.c_double, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32}
PLAIN |= {"int8_t": ctypes.c_int8, "uint8_t": ctypes.c_uint8}


def matched(pattern: str, text: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, text, re.DOTALL)
    if match is None:
        raise ValueError(f"members of structs are plain here, {text!r} is not")
    return match.groups()


class Structs:
    """The structs of some sources of C++, as ctypes, with the values that their members begin with."""

    def __init__(self, *sources: str):
        text = "\n".join((ROOT / source).read_text() for source in sources)
        text = re.sub(r"//.*|\bicr_kernels::", "", text)
        found = re.finditer(
            r"(?:template <class (\w+)>\s*)?struct (?:alignas\(\d+\) )?(\w+)(?: : (\w+)<\w+>)? \{(.*?)\n\};",
            text,
            re.DOTALL,
        )
        self.bodies = {name: (parameter, base, body) for parameter, name, base, body in (m.groups() for m in found)}
        self.numbers, self.kinds = {"nullptr": 0, "false": 0, "true": 1}, dict(PLAIN)
        self.numbers |= {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", text)}
        for scope, name, kind, body in re.findall(r"enum (class )?(\w+)(?: : (\w+))? \{(.*?)\};", text, re.DOTALL):
            self.kinds[name] = PLAIN[kind or "int"]
            value = -1
            for entry in filter(None, map(str.strip, body.split(","))):
                label, _, given = entry.partition("=")
                value = int(self.number(given.strip())) if given else value + 1
                self.numbers[f"{name}::{label.strip()}" if scope else label.strip()] = value

    @functools.cache  # noqa: B019
    def kind(self, name: str) -> Any:
        """The type of that name."""
        name = name.removeprefix("const ").removesuffix(" const")
        if name.endswith("*"):
            return ctypes.c_uint64
        if name in self.kinds:
            return self.kinds[name]
        base, _, argument = name.rstrip(">").partition("<")
        parameter, parent, body = self.bodies[base]
        parents = (self.kind(f"{parent}<{argument}>") if parent else ctypes.Structure,)
        fields, defaults = [], {}
        for statement in filter(None, (part.strip() for part in body.split(";"))):
            kind, members = matched(r"((?:const )?[\w:]+(?:<\w+>)?(?: ?\*)?)\s*(.*)", statement)
            one = self.kind(argument if kind == parameter else kind.replace(" ", "") if "*" in kind else kind)
            for member in re.split(r",(?![^{]*\})", members):
                label, length, value = matched(r"\s*(\w+)(?:\[(\w+)\])?(?: = (.*))?", member)
                fields.append((label, one * self.number(length) if length else one))
                if value not in (None, "{}"):
                    defaults[label] = self.number(value)
        all_fields = [*getattr(parents[0], "all_fields", []), *fields]
        return type(base, parents, {"_fields_": fields, "all_fields": all_fields, "defaults": defaults})

    def number(self, text: str) -> Any:
        return self.numbers[text] if text in self.numbers else float(text) if "." in text else int(text)

    def made(self, name: str, given: Any) -> Any:
        """A value of that type: a number, or what a mapping says of the members of a struct."""
        kind = self.kind(name)
        if not isinstance(given, Mapping):
            return kind(given)
        value = kind()
        self.fill(value, given)
        return value

    def fill(self, value: ctypes.Structure, given: Mapping[str, Any]) -> None:
        unknown = set(given) - {name for name, _ in value.all_fields}
        assert not unknown, f"{type(value).__name__} has no {sorted(unknown)}"
        for name, kind in value.all_fields:
            if issubclass(kind, ctypes.Structure):
                self.fill(getattr(value, name), given.get(name, {}))
            elif issubclass(kind, ctypes.Array):
                setattr(value, name, kind(*given.get(name, ())))
            else:
                setattr(value, name, given.get(name, value.defaults.get(name, 0)))
