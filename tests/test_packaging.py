"""What a user installs: the wheel's contents, the extension's symbols and instructions, clean installs with and without
a compiler."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

USE = """
import torch, icr_kernels as icr
pred = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
loss = icr.icr_loss(pred, torch.tensor([[1.0, 0.0, 3.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 4.0]]), loss="iou")
loss.backward()
assert abs(loss.item() - (2 / 3 + 1 / 2)) < 1e-6, loss
print(icr.__file__)
print(icr.available_backends())
print(icr.operators.CPU_ERROR)
"""


def run(*command: str, **options) -> str:
    environment = options.pop("env", dict(os.environ))
    environment.pop("PYTHONPATH", None)  # it would lead back to this checkout
    environment.pop("TRITON_INTERPRET", None)
    environment["CUDA_VISIBLE_DEVICES"] = ""  # what is installed does not depend on a GPU; what can run does
    result = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def compiled() -> dict[Path, int]:
    """The objects that the installation of this checkout has compiled, and when."""
    return {path: path.stat().st_mtime_ns for path in ROOT.glob("build/temp.*/csrc/cpu/*.o")}


@pytest.fixture(scope="session")
def wheel(compiled, tmp_path_factory):
    """A wheel of this checkout; objects that are already compiled are used again."""
    for stale in (ROOT / "build").glob("lib.*"):
        shutil.rmtree(stale)
    output = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(output))
    return next(output.glob("*.whl"))


@pytest.fixture(scope="session")
def library(wheel, tmp_path_factory):
    """The compiled extension for CPUs out of the wheel."""
    folder = tmp_path_factory.mktemp("extension")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"icr_kernels/_C\..*so", name))
        return archive.extract(name, folder)


def clean_environment(folder: Path, wheel: Path) -> str:
    """A virtual environment that has the wheel and sees only torch and its dependencies of this one."""
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A path file in a folder that is itself named by a path file is not read: an editable install stays unseen.
    (site / "torch_of_the_tests.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    return python


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"icr_kernels", "icr_kernels-0.1.0.dist-info"}
    parts = ("integrations", "scenes", "study", "train_study", "triton_kernels")
    packages = ("icr_kernels", *(f"icr_kernels/{part}" for part in parts))
    for needed in ("icr_kernels/py.typed", *(f"{package}/__init__.py" for package in packages)):
        assert needed in names
    assert [name for name in names if name.startswith("icr_kernels/_C") and name.endswith(".so")]
    assert any(name.endswith("LICENSE") for name in names)


def test_nothing_is_compiled_twice(compiled, wheel):
    """Not even after an editable installation, for which setuptools has a folder that it throws away."""
    sources = max(path.stat().st_mtime for path in ROOT.glob("csrc/**/*.*"))
    if not any(path.stat().st_mtime > sources for path in ROOT.glob("icr_kernels/_C.*so")):
        pytest.skip("not installed since the sources have changed")
    assert compiled
    assert {path: path.stat().st_mtime_ns for path in compiled} == compiled


def test_extension_uses_only_the_stable_abi(library):
    undefined = run("nm", "-D", "--undefined-only", "--demangle", library)
    assert "aoti_torch_empty_strided" in undefined, "the tool that lists symbols sees none"
    assert not re.findall(r"\b(?:at|c10)::\S+", undefined)


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="looks for AVX registers of x86-64")
def test_wide_registers_stay_inside_the_loops_of_their_instruction_set(library):
    """Functions of other files, and inline functions of libraries that a linker may take from any file, must run on a
    machine without AVX."""
    users: set[str] = set()
    function = ""
    for line in run("objdump", "--disassemble", "--demangle", "--no-show-raw-insn", library).splitlines():
        if line.endswith(">:"):
            function = line.split("<", 1)[1]
        elif "%ymm" in line or "%zmm" in line:
            users.add(function)
    assert users
    assert [name for name in users if "(anonymous namespace)::icr::" not in name] == []


def test_wheel_installs_into_a_clean_environment_and_runs(wheel, tmp_path):
    python = clean_environment(tmp_path / "clean", wheel)
    where, backends, error = run(python, "-c", USE, cwd=tmp_path).splitlines()
    assert where.startswith(str(tmp_path))
    assert backends == "['cpu', 'reference']"
    assert error == "None"
    assert "cpu" in run(python, "-m", "icr_kernels", "info", cwd=tmp_path)


def test_without_a_compiler_the_reference_installs_and_says_so(tmp_path):
    tree = tmp_path / "tree"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        tree.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in ("csrc", "icr_kernels", "triton_kernels"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC")}
    environment["PATH"] = str(tmp_path / "empty")
    output = run(sys.executable, "setup.py", "bdist_wheel", "-d", str(tmp_path / "wheel"), cwd=tree, env=environment)
    assert "no C++ compiler" in output
    wheel = next((tmp_path / "wheel").glob("*.whl"))

    python = clean_environment(tmp_path / "clean", wheel)
    _, backends, error = run(python, "-c", USE, cwd=tmp_path).splitlines()
    assert backends == "['reference']"
    assert "compiler" in error
