"""`python -m studies.regression`: what it refuses and writes, its figures, and that a loss and a penalty more are no
trouble."""

import csv
from pathlib import Path

import pytest

import extended_copy
from extended_copy import LOSS, PENALTY
from frameworks import need
from icr_kernels.variants import LOSS_NAMES
from studies.regression import __main__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "0"], "expected a positive whole number, got '0'"),
        (["--quick", "--cases", "343"], "not allowed with argument"),
        (["--backend", "none"], "expected one of "),
    ],
)
def test_wrong_options(capsys, options, message):
    with pytest.raises(SystemExit) as status:
        __main__.main(options)
    assert status.value.code == 2 and message in capsys.readouterr().err


def table(path: Path, *key: str, drop: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, str]]:
    with path.open() as file:
        rows = [{name: cell for name, cell in row.items() if name not in drop} for row in csv.DictReader(file)]
    return {tuple(row.pop(name) for name in key): row for row in rows}


def test_a_loss_and_a_penalty_more(tmp_path):
    """They get rows and panels of their own; and what is known under two names ends in the same numbers."""
    need("matplotlib")
    options = ["--backend", "reference", "--cases", "343", "--iterations", "2", "--output", "made"]
    copy = extended_copy.copied(tmp_path)
    out = extended_copy.run(copy, "-m", "studies.regression", *options)
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
