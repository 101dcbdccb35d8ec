"""What a user installs: the wheel's contents, the extension's symbols and instructions, clean installs with and without
a compiler."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from audit import audited

ROOT = Path(__file__).parents[2]

USE = """
import torch, icr_kernels as icr
pred = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
loss = icr.icr_loss(pred, torch.tensor([[1.0, 0.0, 3.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 4.0]]), loss="iou")
loss.backward()
assert abs(loss.item() - (2 / 3 + 1 / 2)) < 1e-6, loss
print(icr.__file__)
print(icr.available_backends())
print(icr.builds.CPU_ERROR)
print(icr.builds.AUTOGRAD_ERROR)
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
    of_another = ROOT / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "icr_kernels"
    of_another.mkdir(parents=True)
    (of_another / "_C_autograd_2_99_0_cpu.so").touch()
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
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert {name.split("/")[0] for name in names} == {"icr_kernels", "icr_kernels-0.1.0.dist-info"}
    parts = ("integrations", "integrations/ultralytics", "triton_kernels")
    packages = ("icr_kernels", *(f"icr_kernels/{part}" for part in parts))
    assert "icr_kernels/py.typed" in names
    assert {name for name in names if name.endswith("/__init__.py")} == {f"{each}/__init__.py" for each in packages}
    assert "Provides-Extra" not in metadata
    assert re.findall("^Requires-Dist: (.*)$", metadata, re.MULTILINE) == ["torch>=2.10"]
    assert [name for name in names if name.startswith("icr_kernels/_C") and name.endswith(".so")]
    assert any(name.endswith("LICENSE") for name in names)


def test_nothing_is_compiled_twice(compiled, wheel):
    """Not even after an editable installation, for which setuptools has a folder that it throws away."""
    sources = max(path.stat().st_mtime for path in ROOT.glob("csrc/**/*.*"))
    if not any(path.stat().st_mtime > sources for path in ROOT.glob("icr_kernels/_C.*so")):
        pytest.skip("not installed since the sources have changed")
    assert compiled
    assert {path: path.stat().st_mtime_ns for path in compiled} == compiled


def test_extension_serves_every_torch(library):
    """It uses what torch 2.10 promises to keep."""
    (found,) = audited(library)
    assert found["stable"] and found["min_torch_version"] == "2.10.0" and not found["unknown_shim_symbols"]
    assert found["stable_shim_count"] > 20, "it sees what is used of torch"


def test_extension_of_autograd_has_its_torch_in_its_name(wheel):
    """It serves no other, and of another that has left one in the checkout there is none."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.startswith("icr_kernels/_C_autograd")]
    version = re.sub(r"\W", "_", torch.__version__)
    assert name.startswith(f"icr_kernels/_C_autograd_{version}.")


@pytest.mark.skipif(sys.platform != "linux", reason="the tags of wheels for Linux")
def test_wheel_bundles_nothing_and_has_the_tag_of_a_system(wheel, tmp_path):
    """As `make wheel` makes it."""
    command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch*", "--exclude", "libc10*"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run(*command, "--wheel-dir", str(tmp_path), str(wheel), env={**os.environ, "PATH": path})
    (repaired,) = tmp_path.glob("*.whl")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.fullmatch(rf"icr_kernels-0.1.0-{python}-{python}-manylinux_\w+\.whl", repaired.name)
    with zipfile.ZipFile(repaired) as archive, zipfile.ZipFile(wheel) as built:
        names = [[name for name in file.namelist() if not name.endswith("/")] for file in (archive, built)]
    assert sorted(names[0]) == sorted(names[1])


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
    where, backends, *errors = run(python, "-c", USE, cwd=tmp_path).splitlines()
    assert where.startswith(str(tmp_path))
    assert backends == "['cpu', 'reference']"
    assert errors == ["None", "None"]
    assert "cpu" in run(python, "-m", "icr_kernels", "info", cwd=tmp_path)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the source tree, nothing built."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("csrc", "icr_kernels", "triton_kernels"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tree


@pytest.fixture
def without_compilers(tmp_path) -> dict[str, str]:
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC")}
    return {**environment, "PATH": str(tmp_path / "empty")}


def test_readme_checks_the_installation(wheel, tree, tmp_path):
    """Its commands as written, in the source tree, where `import icr_kernels` would find the tree."""
    python = clean_environment(tmp_path / "clean", wheel)
    (line,) = re.findall(r"^(.*python -m icr_kernels info)\s+#", (ROOT / "README.md").read_text(), re.MULTILINE)
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    output = run("sh", "-c", line, cwd=tree, env={**os.environ, "PATH": path})
    assert re.search(r"^backend cpu +yes", output, re.MULTILINE)


def test_source_tree_that_is_not_installed_says_what_it_is(wheel, tree, tmp_path):
    python = clean_environment(tmp_path / "clean", wheel)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    output = run(python, "-m", "icr_kernels", "info", cwd=tree, env=environment)
    (of_cpu,) = re.findall(r"^backend cpu +no: (.*)", output, re.MULTILINE)
    assert f"{tree} is the source tree: start Python in another folder" in of_cpu
    script = "from icr_kernels import builds; print(builds.TRITON_ERROR)"
    assert "is the source tree" in run(python, "-c", script, cwd=tree, env=environment) or not has_triton()


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def test_source_distribution_is_complete_whatever_the_machine(tree, without_compilers, tmp_path):
    output = run(sys.executable, "setup.py", "sdist", "-d", str(tmp_path / "dist"), cwd=tree, env=without_compilers)
    assert "no C++ compiler" in output
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.suffix in (".py", ".h", ".cpp", ".cu")}
    assert len([name for name in sources if name.startswith("csrc/cuda/")]) >= 6
    assert sources - packed == set()
    assert {name for name in packed if name.startswith("tests")} == set()


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("import setuptools; setuptools.__version__ = '65.5.0'", "setuptools 77 or newer, got 65.5.0"),
        ("import pybind11; pybind11.__version__ = '2.9.2'", "pybind11 2.12 or newer, got 2.9.2"),
        ("import torch; torch.__version__ = '2.9.1+cpu'", "torch 2.10 or newer, got 2.9.1+cpu"),
        ("import sys; sys.modules['pybind11'] = None", "pybind11"),
    ],
)
def test_what_a_build_lacks_is_said_in_one_sentence(before, message):
    """With the command that brings it, which is the README's."""
    script = f"{before}; import runpy, sys; sys.argv = ['setup.py', '--name']; runpy.run_path('setup.py')"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "Warning" not in line]
    start = rf"icr_kernels: (without build isolation )?the build needs {re.escape(message)}: pip install "
    assert re.match(start, line)
    command = line.partition(": pip install ")[2].replace(" 'torch>=2.10'", "")
    assert f"pip install {command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["no-such-compiler", "ccache no-such-compiler", '"g++'])
def test_compiler_that_is_named_and_not_there(name):
    environment = {**os.environ, "CXX": name}
    command = [sys.executable, "setup.py", "--name"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"CXX: expected a C++ compiler that is on the path, got {name!r}" in result.stderr


def test_without_a_compiler_the_reference_installs_and_says_so(tree, without_compilers, tmp_path):
    command = [sys.executable, "setup.py", "bdist_wheel", "-d", str(tmp_path / "wheel")]
    output = run(*command, cwd=tree, env=without_compilers)
    assert "no C++ compiler" in output
    wheel = next((tmp_path / "wheel").glob("*.whl"))

    python = clean_environment(tmp_path / "clean", wheel)
    _, backends, error, _ = run(python, "-c", USE, cwd=tmp_path).splitlines()
    assert backends == "['reference']"
    assert "compiler" in error
