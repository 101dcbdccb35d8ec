"""The commands of `python -m icr_kernels` that compute: what they find, write and answer, and that a variant more is no
trouble."""

import csv
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import icr_kernels
from frameworks import need
from icr_kernels import __main__, reference, selfcheck
from icr_kernels.variants import LOSS_NAMES, PENALTY_NAMES

LOSS, PENALTY = "giou again", "pull again"


@pytest.fixture
def quick_check(monkeypatch):
    monkeypatch.setattr(selfcheck, "run", functools.partial(selfcheck.run, losses=("iou",), pairs=30))


def test_check(quick_check, capsys):
    assert __main__.main(["check", "--backend", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("all ") and all(line.endswith(" ok") for line in lines[2:-2])
    assert {f"reference (cpu) iou {penalty}" for penalty in ("none", *PENALTY_NAMES)} <= {
        " ".join(line.split()[:4]) for line in lines
    }


def test_check_finds_what_is_wrong(quick_check, extension, monkeypatch, capsys):
    """A reference that is a percent off stands for a kernel that is."""
    monkeypatch.setitem(reference.LOSSES, "iou", lambda p, g, eps: 1.01 * reference.iou(p, g, eps))
    assert __main__.main(["check", "--backend", "cpu"]) == 1
    out = capsys.readouterr().out
    failed = [line for line in out.splitlines() if line.endswith("FAILED")]
    assert len(failed) == 1 + len(PENALTY_NAMES) and all(line.startswith("cpu (cpu)  iou ") for line in failed)
    assert f"{len(failed)} of " in out.splitlines()[-1]


def test_commands_that_are_refused(capsys):
    for arguments, message in (
        (["check", "--backend", "none"], "expected one of "),
        (["study", "--cases", "0"], "expected a positive whole number, got '0'"),
        (["study", "--quick", "--cases", "343"], "not allowed with argument"),
    ):
        with pytest.raises(SystemExit) as status:
            __main__.main(arguments)
        assert status.value.code == 2 and message in capsys.readouterr().err


def table(path: Path, *key: str, drop: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, str]]:
    with path.open() as file:
        rows = [{name: cell for name, cell in row.items() if name not in drop} for row in csv.DictReader(file)]
    return {tuple(row.pop(name) for name in key): row for row in rows}


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: what this test edits has changed: {old!r}"
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package without kernels, and in its registry and reference a loss and a penalty under a second name."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "icr_kernels"
    shutil.copytree(
        Path(icr_kernels.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("*.so", "__pycache__", "triton_kernels"),
    )
    edited(package / "variants.py", "\n)\n\n# s =", f'\n    Variant("{LOSS}", "1", "[0, 2)", "test"),\n)\n\n# s =')
    edited(
        package / "variants.py",
        "\n)\n\n# Without",
        f'\n    Variant("{PENALTY}", "1", "[0, 1)", "test"),\n)\n\n# Without',
    )
    edited(package / "reference.py", "eiou, siou)", "eiou, siou, giou)")
    edited(
        package / "reference.py",
        "pull_penalty, containment_pull_penalty)",
        "pull_penalty, containment_pull_penalty, pull_penalty)",
    )
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_study_with_a_loss_and_a_penalty_more(copy):
    """They get rows and panels of their own; and what is known under two names ends in the same numbers."""
    need("matplotlib")
    options = ["--backend", "reference", "--cases", "343", "--iterations", "2", "--output", "made"]
    out = run(copy, "-m", "icr_kernels", "study", *options)
    assert out.splitlines()[-1] == "written to made/"
    made = copy / "made"
    regressions = table(made / "regression.csv", "gradient", "loss", drop=("seconds", "eager_seconds_scaled"))
    assert [loss for gradient, loss in regressions if gradient == "formula"] == [*LOSS_NAMES, LOSS]
    assert regressions["formula", LOSS] == regressions["formula", "giou"] != regressions["formula", "iou"]
    plates = table(made / "plates.csv", "scenario", "loss", "penalty", "weight")
    for (scenario, loss, penalty, weight), row in plates.items():
        if loss == LOSS:
            assert row == plates[scenario, "giou", penalty, weight]
        if penalty == PENALTY:
            assert row == plates[scenario, loss, "pull", weight]
    assert {loss for _, loss, _, _ in plates} == {*LOSS_NAMES, LOSS}
    assert {file.name for file in made.glob("*.png")} == {
        "error_curves.png",
        "error_plane.png",
        "penalty_fields.png",
        "plates.png",
    }


def test_check_with_a_loss_and_a_penalty_more(copy):
    script = f"""
import functools, sys
from icr_kernels import __main__, selfcheck
selfcheck.run = functools.partial(selfcheck.run, losses=({LOSS!r},), pairs=30)
sys.exit(__main__.main(["check", "--backend", "reference"]))
"""
    lines = run(copy, "-c", script).splitlines()
    assert lines[-1].startswith("all ")
    checked = [tuple(re.split(" {2,}", line)[1:3]) for line in lines if line.startswith("reference (cpu)  ")]
    assert [penalty for loss, penalty in checked if loss == LOSS] == ["none", *PENALTY_NAMES, PENALTY, "all pairs"]
    assert (f"{PENALTY}_penalty", "all pairs") in checked


def test_names_without_a_style_of_their_own(tmp_path):
    """Look like no other."""
    need("matplotlib")
    from studies.regression import figures

    for known in (figures.LOSS_STYLES, figures.PENALTY_STYLES):
        styles = figures.styled([*known, "a", "b", "c"], known)
        looks = [(style["color"], style["marker"]) for style in styles.values()]
        assert list(styles)[-3:] == ["a", "b", "c"] and len(set(looks)) == len(looks)
        assert all(styles[name] == style for name, style in known.items())


@pytest.mark.parametrize("count", [1, 3, 6, 7, 12])
def test_panels(count):
    """One each, in a grid that they fill up to its last row, and what is left of that is blank."""
    need("matplotlib")
    from studies.regression import figures

    figure, panels = figures.grid(count, 2.5)
    assert len(panels) == count
    shown = [axes for axes in figure.axes if axes.axison]
    assert shown == panels and len(figure.axes) - count < figures.COLUMNS
    places = [(axes.get_subplotspec().rowspan.start, axes.get_subplotspec().colspan.start) for axes in panels]
    for axes, (row, column) in zip(panels, places, strict=True):
        assert axes.xaxis.get_tick_params()["labelbottom"] == ((row + 1, column) not in places)
