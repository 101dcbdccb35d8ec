"""How many instructions the compiled kernels execute: a measure of speed without noise, so that a regression shows.

Counted by callgrind, in the extension alone: neither the interpreter nor torch are part of it. The counts are those of
one compiler and of one instruction set, which valgrind can run; they are recorded in instructions.csv, written anew by
`python tests/builds/test_instructions.py`.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icr_kernels import builds

RECORD = Path(__file__).parent / "instructions.csv"
SUPPORT = Path(__file__).parents[1] / "support"
DRIVER = SUPPORT / "instructions_driver.py"
INSTRUCTION_SET = "avx2"

# Of the recorded count. Patch releases of a compiler, and addresses that pick another branch, stay below.
TOLERANCE = 0.02


def obstacle() -> str | None:
    """What keeps callgrind from counting here."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if shutil.which("gcc") is None:
        return "no gcc to compile the requests to callgrind"
    if builds.cpu_build is None:
        return builds.CPU_ERROR
    if INSTRUCTION_SET not in builds.cpu_build.instruction_sets():
        return f"this build has no {INSTRUCTION_SET}"
    return None


def counted(folder: Path) -> dict[str, int]:
    """Instructions per pair of each call of the driver, in thousandths."""
    requests = folder / "requests.so"
    source = SUPPORT / "cpp" / "callgrind_requests.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", str(source), "-o", str(requests)], check=True)
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/dump"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, sys.executable, str(DRIVER), str(requests)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts = {}
    for dump in sorted(folder.glob("dump.*"), key=lambda path: int(path.suffix[1:])):
        text = dump.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
        if name is not None:
            what, pairs = name[1].rsplit("|", 1)
            counts[what] = round(1000 * in_extension(text) / int(pairs))
    return counts


def in_extension(dump: str) -> int:
    """The instructions of functions of the extension themselves, without those that they call elsewhere."""
    names: dict[str, str] = {}
    total, is_ours, is_inclusive = 0, False, False
    for line in dump.splitlines():
        if match := re.match(r"ob=(\(\d+\))(?: (.*))?$", line):
            names.setdefault(match[1], match[2] or "")
            is_ours = Path(names[match[1]]).name.startswith("_C.")
        elif match := re.match(r"cob=(\(\d+\)) (.*)$", line):
            names.setdefault(match[1], match[2])
        elif line.startswith("calls="):
            is_inclusive = True  # the next line counts what the callee did
        elif re.match(r"[\d+*-]", line):
            if is_ours and not is_inclusive:
                total += int(line.split()[1])
            is_inclusive = False
    return total


def recorded() -> dict[str, dict[str, str]]:
    with RECORD.open(newline="") as file:
        return {row["call"]: row for row in csv.DictReader(file)}


def test_kernels_execute_as_many_instructions_as_recorded(tmp_path):
    if reason := obstacle():
        pytest.skip(reason)
    rows = recorded()
    compiler = builds.cpu_build.compiler()
    if compiler not in {row["compiler"] for row in rows.values()}:
        pytest.skip(f"the record is of another compiler than {compiler}")
    counts = counted(tmp_path)
    assert set(counts) == set(rows)
    wrong = {
        call: f"{count / 1000:.2f} per pair instead of {int(rows[call]['thousandths']) / 1000:.2f}"
        for call, count in counts.items()
        if abs(count - int(rows[call]["thousandths"])) > TOLERANCE * int(rows[call]["thousandths"])
    }
    assert wrong == {}, "slower, or faster: then record it with `python tests/builds/test_instructions.py`"


def test_only_the_extension_counts():
    """Its functions' own instructions; those of what they call are the callee's, wherever it lives."""
    dump = """
ob=(1) /usr/lib/libtorch.so
fn=(1) torch
3 1000
ob=(2) /somewhere/_C.cpython-311.so
fn=(2) kernel
10 7
+1 30
cob=(1)
cfn=(1)
calls=1 3
+2 1000
cob=(3) /usr/lib/libm.so
cfn=(3) atan
calls=5 0
* 500
* 5
ob=(3)
fn=(3)
1 500
ob=(2)
fn=(4) other
2 100
totals: 1642
"""
    assert in_extension(dump) == 7 + 30 + 5 + 100


if __name__ == "__main__":
    import tempfile

    if reason := obstacle():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as temporary:
        found = counted(Path(temporary))
    with RECORD.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["call", "thousandths", "instruction_set", "compiler"])
        writer.writerows([call, count, INSTRUCTION_SET, builds.cpu_build.compiler()] for call, count in found.items())
    print(f"written: {RECORD}")
