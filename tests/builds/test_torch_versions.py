"""Every torch from the oldest on: the C++ sources compile against its headers, and what is used of its Python is there.

The wheels for macOS have the same headers and sources as those for Linux, and none of the gigabytes of CUDA.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import pybind11
import pytest

from frameworks import ALL

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "icr_kernels"
# The oldest, and the newest that was tried.
VERSIONS = ("2.10.0", "2.14.1")
OLDEST_TORCH = re.search(r'OLDEST_TORCH = "(\w+)"', (ROOT / "setup.py").read_text())[1]
TOOLKITS = [Path(home) / "include" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
TOOLKIT = next((path for path in TOOLKITS if (path / "cuda_runtime.h").exists()), None)

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


def unpacked(version: str) -> Path:
    """The folder that has the package `torch` of that version, without its libraries."""
    folder = CACHE / f"torch-{version}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", *(f"--platform=macosx_{n}_0_arm64" for n in (11, 12, 13, 14))]
        fetched = subprocess.run([*command, "-d", temporary, f"torch=={version}"], capture_output=True, text=True)
        if fetched.returncode != 0 and not ALL:
            pytest.skip(f"the wheel of torch {version} cannot be fetched: {fetched.stderr.splitlines()[-1]}")
        assert fetched.returncode == 0, fetched.stderr
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
            parts = [name for name in wheel.namelist() if re.search(r"\.(h|hpp|pyi?)$|py\.typed$", name)]
            wheel.extractall(Path(temporary) / "unpacked", parts)
        (Path(temporary) / "unpacked").rename(folder)  # whole or not at all
    return folder


@needs_compiler
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("which", ["cpu", "cuda", "autograd"])
def test_sources_compile_against_the_headers(which, version):
    """Those of the installed one have just been compiled against."""
    whose = {"cuda": "cuda", "autograd": "autograd"}
    sources = {"cpu": [], "cuda": [], "autograd": []}
    for path in ROOT.glob("csrc/**/*.cpp"):
        sources[whose.get(path.parent.name) or whose.get(path.stem) or "cpu"].append(path)
    assert {name: len(paths) for name, paths in sources.items()} == {"cpu": 7, "cuda": 2, "autograd": 1}
    if which == "cuda" and TOOLKIT is None:
        pytest.skip("no CUDA toolkit in CUDA_HOME or /usr/local/cuda, whose headers are needed too")
    includes = [
        pybind11.get_include(),
        str(unpacked(version) / "torch" / "include"),
        str(unpacked(version) / "torch" / "include" / "torch" / "csrc" / "api" / "include"),
        sysconfig.get_path("include"),
        *([str(TOOLKIT)] if TOOLKIT else []),
    ]
    command = ["c++", "-fsyntax-only", *(f"-I{path}" for path in includes)]
    if which == "autograd":
        command += ["-std=c++20", "-DTORCH_EXTENSION_NAME=_C_autograd"]
    else:
        command += ["-std=c++17", f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}", "-DUSE_CUDA"]
        command += ['-DICR_KERNELS_NVCC=""', '-DICR_KERNELS_ARCHITECTURES=""']
    for source in sources[which]:
        compiled = subprocess.run([*command, str(source)], capture_output=True, text=True)
        assert compiled.returncode == 0, compiled.stderr[:4000]


def test_python_uses_only_what_torch_has():
    """By a type checker, which reads torch's own declarations."""
    version = "2.11.0"
    environment = {**os.environ, "MYPYPATH": str(unpacked(version))}
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(CACHE / f"mypy-{version}"), "--no-error-summary"]
    checked = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert checked.stderr == ""
    about_this = [
        line for line in checked.stdout.splitlines() if re.match(r"(icr_kernels|benchmarks|studies|setup)\b", line)
    ]
    assert about_this == []
    assert f"torch-{version}" in checked.stdout, "torch's own faults show that this torch was read"
