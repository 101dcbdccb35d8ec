"""The CPU loops under AddressSanitizer and UBSan, over misaligned, strided and odd-sized views (`cpp/sanitize.cpp`)."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CPP = Path(__file__).parent / "cpp"

# Checks of null pointers and alignment, and red zones on the stack, make compiling take minutes instead of seconds.
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,alignment",
    "-fno-sanitize-recover=all",
    "--param=asan-stack=0",
]
TARGETS = {"generic": []}
if platform.machine() == "x86_64":
    TARGETS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
    }


def test_loops_touch_only_what_is_theirs(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build with")
    builds = {
        name: [*target, "-include", str(CPP / "one_variant.h"), "-c", str(ROOT / "csrc" / "cpu" / f"{name}.cpp")]
        for name, target in TARGETS.items()
    }
    builds["main"] = ["-c", str(CPP / "sanitize.cpp")]
    objects = [str(tmp_path / f"{name}.o") for name in builds]
    compiling = [
        subprocess.Popen([compiler, *FLAGS, *arguments, "-o", output], stderr=subprocess.PIPE, text=True)
        for arguments, output in zip(builds.values(), objects, strict=True)
    ]
    for process in compiling:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    program = str(tmp_path / "sanitize")
    subprocess.run([compiler, *FLAGS, *objects, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "generic: " in result.stdout
