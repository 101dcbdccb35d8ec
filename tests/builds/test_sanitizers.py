"""The CPU loops, and the CUDA kernels on an emulated GPU, under sanitizers (`cpp/sanitize.cpp`): misaligned, strided
and odd-sized views, sums in every order of the blocks; and whether that reaches every line of the kernels."""

import gzip
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CPP = ROOT / "tests" / "support" / "cpp"

# Checks of null pointers and alignment, and red zones on the stack, make compiling take minutes instead of seconds.
FLAGS = ["-std=c++17", "-O1", "-g1", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
ADDRESS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,alignment",
    "-fno-sanitize-recover=all",
    "--param=asan-stack=0",
]
ONE_VARIANT = ["-include", str(CPP / "one_variant.h")]
LOOPS = {"generic": []}
if platform.machine() == "x86_64":
    # Pointers are computed by the same source for each of them: for one of them that is checked, which takes a third.
    AVX2 = ["-fno-sanitize=pointer-overflow", "-mavx2", "-mfma"]
    LOOPS["avx2"] = AVX2
    # Compiled where they can run.
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        LOOPS["avx512"] = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
CPU = {str(ROOT / "csrc" / "cpu" / f"{name}.cpp"): [*target, *ONE_VARIANT] for name, target in LOOPS.items()}
CPU[str(ROOT / "csrc" / "cpu" / "table_gradient.cpp")] = []
CPU[str(CPP / "cpu_processors.cpp")] = ["-DWITH_AVX512"] if "avx512" in LOOPS else []
CPU[str(CPP / "sanitize.cpp")] = []
EMULATION = [f"-I{CPP / 'emulation'}", "-fdata-sections"]
SHARED_MEMORY = f"-Wl,-T,{CPP / 'emulation' / 'shared.ld'}"
GPU = {
    str(CPP / "emulated_processors.cpp"): [*EMULATION, *ONE_VARIANT],
    str(CPP / "emulation" / "emulation.cpp"): EMULATION,
    str(CPP / "sanitize.cpp"): [],
}


def build(folder: Path, sources: dict[str, list[str]], flags: list[str]) -> str:
    """Compiles the sources, each with its own flags, all at once, and links them."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build with")
    objects = [str(folder / f"{Path(source).stem}.o") for source in sources]
    compiling = [
        subprocess.Popen(
            [compiler, *FLAGS, *flags, *own, "-c", source, "-o", output], stderr=subprocess.PIPE, text=True
        )
        for (source, own), output in zip(sources.items(), objects, strict=True)
    ]
    for process in compiling:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    program = str(folder / "sanitize")
    layout = [SHARED_MEMORY] if any("emulation" in source for source in sources) else []
    subprocess.run([compiler, *flags, *objects, *layout, "-o", program], check=True)
    return program


def run(program: str) -> str:
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_loops_touch_only_what_is_theirs(tmp_path):
    output = run(build(tmp_path, CPU, ADDRESS))
    assert "generic: 2304 runs\n" in output and "generic: 1792 runs over sets" in output


def test_kernels_touch_only_what_is_theirs(tmp_path):
    output = run(build(tmp_path, GPU, ADDRESS))
    assert "emulated CUDA: 117 runs\n" in output and "emulated CUDA: 117 runs over sets" in output


def races(folder: Path, sources: dict[str, list[str]]) -> subprocess.CompletedProcess:
    emulation = str(CPP / "emulation" / "emulation.cpp")
    own = {emulation: [*EMULATION, "-fno-sanitize=thread", "-DTELL_THREAD_SANITIZER"]}
    program = build(folder, sources | own, ["-fsanitize=thread"])
    result = subprocess.run([program], capture_output=True, text=True)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run under the memory layout of this machine's Linux")
    return result


def test_kernels_have_no_races(tmp_path):
    result = races(tmp_path, GPU)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "emulated CUDA: 12 runs\n" in result.stdout and "emulated CUDA: 8 runs over sets" in result.stdout


@pytest.mark.parametrize("race", [0, 1, 2, 3], ids=["none", "fence_before", "fence_after", "barrier"])
def test_races_are_found(race, tmp_path):
    """The sum over blocks without one of the three things that order it."""
    result = races(tmp_path, {str(CPP / "racy.cpp"): [*EMULATION, f"-DRACE={race}"]})
    assert ("data race" in result.stderr) == (race != 0), result.stderr[-4000:]


def test_emulation_reaches_every_line_of_the_kernels(tmp_path):
    if shutil.which("gcov") is None:
        pytest.skip("no gcov")
    run(build(tmp_path, GPU, ["--coverage"]))
    subprocess.run(
        ["gcov", "--json-format", "emulated_processors.o"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL
    )
    with gzip.open(next(tmp_path.glob("*.gcov.json.gz"))) as report:
        files = json.load(report)["files"]
    for name in ("kernels.cu", "pairwise.cu", "selection.cu", "assignment.cu", "detection.cu", "rows.h"):
        counts = {}
        for line in next(file for file in files if file["file"].endswith(f"cuda/{name}"))["lines"]:
            number = line["line_number"]
            counts[number] = counts.get(number, 0) + line["count"]
        assert len(counts) > 30
        assert [(name, number) for number, count in counts.items() if count == 0] == []
