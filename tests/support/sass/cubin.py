"""Compiled kernels: the machine code of chosen ones, and what else of them is in its file."""

import ast
import importlib.util
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from . import listing
from .listing import Instruction

ROOT = Path(__file__).parents[3]
CAPABILITY, ARCHITECTURE = "9.0", "sm_90"
# Where parameters begin in constant bank 0.
PARAMETERS = 0x210


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


def output_of(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
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
    """Of mangled names, without the namespaces, what returns nothing, and whose formula it is."""
    shown = output_of("c++filt", *names).splitlines()
    plain = [
        re.sub(r"^void |\bicr_kernels::|\bicr_cuda::|\bicr::|\(anonymous namespace\)::", "", name) for name in shown
    ]
    return [re.sub(r"\w+(?:<[^<>]*>)?::Formula<", "Formula<", name) for name in plain]


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
    code: list[Instruction]
    tables: bytes  # of jumps: constant bank 2
    globals_at: tuple[int, ...]  # offsets in .nv.global of the addresses that are in constant bank 4
    globals_bytes: int
    shared_bytes: int
    parameter_bytes: int


def compiled(source: str, folder: Path, flags: list[str]) -> Path:
    """The machine code of a source."""
    cubin = folder / f"{Path(source).stem}.cubin"
    output_of(str(nvcc()), *flags, f"-arch={ARCHITECTURE}", "-cubin", ROOT / source, "-o", cubin)
    return cubin


def extracted(object_file: Path, folder: Path) -> Path:
    """The machine code in an object file that was compiled for one architecture."""
    output_of(str(cuobjdump()), "-xelf", "all", object_file, cwd=folder)
    (cubin,) = folder.glob(f"{object_file.stem}.*cubin")
    return cubin


def read(cubin: Path, wanted: list[str]) -> dict[str, Kernel]:
    """The kernels whose names, with template arguments, are wanted."""
    parts = {section.name: section for section in sections(cubin.read_bytes())}
    entries = [name.removeprefix(".text.") for name in parts if name.startswith(".text.")]
    named = {re.sub(r"\(.*", "", name): (entry, name) for entry, name in zip(entries, readable(entries), strict=True)}
    missing = set(wanted) - set(named)
    assert not missing, f"no {sorted(missing)} in {cubin.name}; there are {sorted(named)}"
    signatures = dict(named[name] for name in wanted)
    code = listing.kernels(output_of(str(cuobjdump()), "-sass", "-fun", ",".join(signatures), cubin))
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
            parts[f".nv.constant0.{entry}"].size - PARAMETERS,
        )
    return found
