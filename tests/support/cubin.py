"""Compiled kernels without a GPU: machine code of chosen kernels, what else is in its file, and the structs they take.

The structs are read from the headers, so that what a test hands to a kernel has the layout that the kernel has.
"""

import ast
import ctypes
import functools
import importlib.util
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sass

ROOT = Path(__file__).parents[2]
ARCHITECTURE = "sm_90"
HEADERS = ("csrc/task.h", "csrc/cuda/kernels.h", "csrc/cuda/pairwise.h")


# The programs


def nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def cuobjdump() -> str | None:
    """That of the toolkit, or the one that comes with Triton."""
    compiler, triton = nvcc(), importlib.util.find_spec("triton")
    places = [str(Path(compiler).resolve().parent / "cuobjdump")] if compiler else []
    places.append("cuobjdump")
    if triton is not None and triton.origin is not None:
        places.append(str(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"))
    return next(filter(None, map(shutil.which, places)), None)


def obstacle() -> str | None:
    """What keeps kernels from being compiled and read here."""
    if nvcc() is None:
        return "no nvcc to compile with"
    if cuobjdump() is None:
        return "no cuobjdump, neither of CUDA nor of Triton"
    return None if shutil.which("c++filt") else "no c++filt"


def output_of(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stderr[-4000:]}"
    return done.stdout


def nvcc_version() -> str:
    version = re.search(r"V(\d[\d.]*)", output_of(str(nvcc()), "--version"))
    assert version is not None
    return version[1]


def flags_of(source: str) -> list[str]:
    """Those with which setup.py compiles the kernels of a source, in its own words."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    values = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return [*ast.literal_eval(values["KERNEL_FLAGS"]), *ast.literal_eval(values["KERNELS"])[source]]


def readable(names: list[str]) -> list[str]:
    """Of mangled names, without the namespaces and what returns nothing."""
    shown = output_of("c++filt", *names).splitlines()
    return [
        re.sub(r"^void |\bicr_kernels::|\bicr_cuda::|\bicr::|\(anonymous namespace\)::", "", name) for name in shown
    ]


# Files of machine code


class Section(NamedTuple):
    name: str
    data: bytes
    size: int  # of zeros where there are no data
    number: int
    kind: int


RELOCATIONS, NO_DATA = 4, 8


def sections(file: bytes) -> list[Section]:
    """Of an ELF file of 64 bits."""
    (start,) = struct.unpack_from("<Q", file, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", file, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", file, start + i * size) for i in range(count)]
    names = file[headers[names_at][4] :][: headers[names_at][5]]
    found = []
    for number, (name, kind, _, _, offset, length, *_) in enumerate(headers):
        text = names[name : names.index(b"\0", name)].decode()
        data = b"" if kind == NO_DATA else file[offset : offset + length]
        found.append(Section(text, data, length, number, kind))
    return found


class Kernel(NamedTuple):
    name: str  # as it is written, with its template arguments
    parameters: tuple[str, ...]  # their types
    code: list[sass.Instruction]
    tables: bytes  # of jumps: constant bank 2
    globals_at: tuple[int, ...]  # offsets in .nv.global of the addresses that are in constant bank 4
    globals_bytes: int
    shared_bytes: int
    parameter_bytes: int


def compiled(source: str, wanted: tuple[str, ...], folder: Path) -> dict[str, Kernel]:
    """The kernels of a source whose names, with template arguments, are wanted. Only these are made machine code of."""
    ptx, cubin = folder / f"{Path(source).stem}.ptx", folder / f"{Path(source).stem}.cubin"
    common = [str(nvcc()), *flags_of(source), f"-arch={ARCHITECTURE}"]
    output_of(*common, "-ptx", ROOT / source, "-o", ptx)
    entries = re.findall(r"^\s*(?:\.visible\s+|\.weak\s+)*\.entry\s+(\w+)", ptx.read_text(), re.MULTILINE)
    named = {re.sub(r"\(.*", "", name): (entry, name) for entry, name in zip(entries, readable(entries), strict=True)}
    missing = set(wanted) - set(named)
    assert not missing, f"no {sorted(missing)} in {source}; there are {sorted(named)}"
    chosen = {name: named[name] for name in wanted}
    entry_options = ",".join(f"--entry={entry}" for entry, _ in chosen.values())
    output_of(*common, "-cubin", f"-Xptxas={entry_options}", ptx, "-o", cubin)
    return read(cubin, {entry: signature for entry, signature in chosen.values()})


def read(cubin: Path, signatures: Mapping[str, str]) -> dict[str, Kernel]:
    code = sass.kernels(output_of(str(cuobjdump()), "-sass", cubin))
    parts = {section.name: section for section in sections(cubin.read_bytes())}
    nothing = Section("", b"", 0, 0, 0)
    symbols = parts[".symtab"].data
    addresses = []
    relocations = parts.get(".rela.nv.constant4", nothing).data
    for offset, info, addend in sorted(struct.iter_unpack("<QQq", relocations)):
        assert offset == 8 * len(addresses), "addresses of variables stand one after the other"
        *_, value, _ = struct.unpack_from("<IBBHQQ", symbols, 24 * (info >> 32))
        addresses.append(value + addend)
    found = {}
    for entry, signature in signatures.items():
        name, parameters = re.fullmatch(r"(.*?)\((.*)\)", signature).groups()
        found[name] = Kernel(
            name,
            tuple(part.strip() for part in re.split(r",\s*(?![^<]*>)", parameters)),
            code[entry],
            parts.get(f".nv.constant2.{entry}", nothing).data,
            tuple(addresses),
            parts.get(".nv.global", nothing).size,
            parts.get(f".nv.shared.{entry}", nothing).size,
            parts[f".nv.constant0.{entry}"].size - sass.PARAMETERS,
        )
    return found


# Structs

PLAIN = {"bool": ctypes.c_bool, "int": ctypes.c_int32, "unsigned": ctypes.c_uint32, "int64_t": ctypes.c_int64}
PLAIN |= {"float": ctypes.c_float, "double": ctypes.c_double, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32}
PLAIN |= {"int8_t": ctypes.c_int8, "uint8_t": ctypes.c_uint8}


class Structs:
    """The structs of some sources of C++, as ctypes, with the values that their members begin with."""

    def __init__(self, *sources: str):
        text = "\n".join((ROOT / source).read_text() for source in sources)
        text = re.sub(r"//.*", "", text)
        found = re.finditer(
            r"(?:template <class (\w+)>\s*)?struct (?:alignas\(\d+\) )?(\w+) \{(.*?)\n\};", text, re.DOTALL
        )
        self.bodies = {name: (parameter, body) for parameter, name, body in (match.groups() for match in found)}
        self.numbers, self.kinds = {"nullptr": 0, "false": 0, "true": 1}, dict(PLAIN)
        for scope, name, kind, body in re.findall(r"enum (class )?(\w+)(?: : (\w+))? \{(.*?)\};", text, re.DOTALL):
            self.kinds[name] = PLAIN[kind or "int"]
            value = -1
            for entry in filter(None, map(str.strip, body.split(","))):
                label, _, given = entry.partition("=")
                value = int(given) if given else value + 1
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
        parameter, body = self.bodies[base]
        fields, defaults = [], {}
        for statement in filter(None, (part.strip() for part in body.split(";"))):
            kind, members = re.fullmatch(
                r"((?:const )?[\w:]+(?:<\w+>)?(?: ?\*)?)\s*(.*)", statement, re.DOTALL
            ).groups()
            one = self.kind(argument if kind == parameter else kind.replace(" ", "") if "*" in kind else kind)
            for member in re.split(r",(?![^{]*\})", members):
                label, length, value = re.fullmatch(r"\s*(\w+)(?:\[(\w+)\])?(?: = (.*))?", member).groups()
                fields.append((label, one * self.number(length) if length else one))
                if value not in (None, "{}"):
                    defaults[label] = self.number(value)
        return type(base, (ctypes.Structure,), {"_fields_": fields, "defaults": defaults})

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
        unknown = set(given) - {name for name, _ in value._fields_}
        assert not unknown, f"{type(value).__name__} has no {sorted(unknown)}"
        for name, kind in value._fields_:
            if issubclass(kind, ctypes.Structure):
                self.fill(getattr(value, name), given.get(name, {}))
            elif issubclass(kind, ctypes.Array):
                setattr(value, name, kind(*given.get(name, ())))
            else:
                setattr(value, name, given.get(name, value.defaults.get(name, 0)))


def packed(structs: Structs, kernel: Kernel, arguments: tuple[Any, ...]) -> bytes:
    """The parameters of a kernel as they lie in its constant bank."""
    data = b""
    for kind, given in zip(kernel.parameters, arguments, strict=True):
        value = structs.made(kind, given)
        data += bytes(-len(data) % ctypes.alignment(value)) + bytes(value)
    assert len(data) == kernel.parameter_bytes, f"{kernel.name}: {len(data)} bytes, not {kernel.parameter_bytes}"
    return data


def run(
    structs: Structs, kernel: Kernel, memory: sass.Memory, arguments: tuple[Any, ...], blocks: int, threads: int
) -> sass.Machine:
    """Runs a kernel, with its arguments as mappings and numbers, over a memory that they point into."""
    variables = memory.reserve(kernel.globals_bytes)
    addresses = np.array([variables + at for at in kernel.globals_at], np.uint64).tobytes()
    banks = {0: bytes(sass.PARAMETERS) + packed(structs, kernel, arguments), 2: kernel.tables, 4: addresses}
    machine = sass.Machine(kernel.code, memory, banks, kernel.shared_bytes)
    machine.launch(blocks, threads)
    return machine
