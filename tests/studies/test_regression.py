"""`python -m studies.regression`: what it refuses and writes, its figures, and that a loss and a penalty more are no
trouble."""

import csv
from pathlib import Path

import pytest

import extended_copy
import icr_kernels as icr
from extended_copy import LOSS, PENALTY
from frameworks import need
from icr_kernels.variants import COMMON_LOSS_NAMES, DISTANCES, LOSS_NAMES, LOSSES
from studies.regression import __main__, grid, protocol


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "0"], "expected a positive whole number, got '0'"),
        (["--quick", "--cases", "343"], "not allowed with argument"),
        (["--backend", "none"], "expected one of "),
        (["--parts", "boxes"], "invalid choice: 'boxes'"),
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
    """They get rows of their own; and what is known under two names ends in the same numbers."""
    need("matplotlib")
    options = ["--backend", "reference", "--cases", "343", "--iterations", "2", "--output", "made"]
    copy = extended_copy.copied(tmp_path)
    out = extended_copy.run(copy, "-m", "studies.regression", *options)
    assert out.splitlines()[-1] == "written to made/"
    made = copy / "made"
    regressions = table(made / "regression.csv", "gradient", "loss", drop=("seconds", "eager_seconds_scaled"))
    assert [loss for gradient, loss in regressions if gradient == "formula"] == list(COMMON_LOSS_NAMES)
    assert regressions["formula", "diou"] != regressions["formula", "giou"]
    outcomes = table(made / "grid.csv", "loss", "modifier")
    assert list(dict.fromkeys(loss for loss, _ in outcomes)) == [*LOSS_NAMES, LOSS]
    for (loss, modifier), row in outcomes.items():
        if loss == LOSS:
            assert row == outcomes["giou", modifier]
    assert (LOSS, "inner 0.7") in outcomes
    plates = table(made / "plates.csv", "scenario", "loss", "penalty", "weight")
    for (scenario, loss, penalty, weight), row in plates.items():
        if penalty == PENALTY:
            assert row == plates[scenario, loss, "pull", weight]
    assert {loss for _, loss, _, _ in plates} == set(COMMON_LOSS_NAMES)
    assert PENALTY in {penalty for _, _, penalty, _ in plates}
    assert {file.name for file in made.glob("*.png")} == {
        "error_curves.png",
        "error_plane.png",
        "grid.png",
        "grid_curves.png",
        "penalty_fields.png",
        "plates.png",
    }


def test_one_part_alone(tmp_path, capsys):
    options = [
        "--backend",
        "reference",
        "--cases",
        "343",
        "--iterations",
        "2",
        "--no-figures",
        "--output",
        str(tmp_path),
    ]
    assert __main__.main([*options, "--parts", "grid"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"grid.csv", "grid.md"}
    rows, text = table(tmp_path / "grid.csv", "loss", "modifier"), (tmp_path / "grid.md").read_text()
    assert text in capsys.readouterr().out and len(text.splitlines()) == 2 + len(LOSS_NAMES)
    row = rows["ciou", "inner 1.25"]
    assert f"{100 * float(row['unsolved']):.2f} %, {float(row['mean_error']):.4f}" in text
    assert {row["cases"] for row in rows.values()} == {"343"}


def test_grid_has_every_loss_and_what_it_takes():
    """And the study's page has a row of each."""
    choices = grid.choices()
    for loss, modifier in choices:
        grid.loss_of(loss, modifier)
    for loss in LOSS_NAMES:
        modifiers = {modifier for name, modifier in choices if name == loss}
        assert "alone" in modifiers and (modifiers == {"alone"}) == (loss in DISTANCES)
    assert {loss for loss, modifier in choices if modifier == "wise v3"} == set(grid.WISE_LOSSES)
    page = (Path(__file__).parents[2] / "docs/study.md").read_text()
    for loss in LOSS_NAMES:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{loss}` |"))
        count = sum(name == loss for name, _ in choices)
        assert row.count("%") == count


def test_losses_in_pixels_have_parameters_for_the_unit_of_the_study():
    in_pixels = {each.name: {one.name for one in each.parameters if one.power} for each in LOSSES}
    assert {loss: set(fitting) for loss, fitting in grid.FITTING.items()} == {
        loss: names for loss, names in in_pixels.items() if names
    }


def test_mean_of_a_wise_loss_is_that_of_one_descent():
    """It moves by a hundredth of the way at each call, and begins at 1 again for another descent."""
    start, target = protocol.cases(0.1 * protocol.anchor_points(2, 0) + 0.9 * protocol.CENTER)  # near the target
    weight = start.new_ones(len(start))
    loss = grid.loss_of("ciou", "wise v2")
    mean = 1 + 0.01 * (protocol.iou_loss(start, target, "reference").mean() - 1)
    options = {"loss": loss, "reduction": "sum", "box_format": protocol.BOX_FORMAT, "backend": "reference"}
    expected = icr.icr_loss_and_grad(start, target, weight=weight, wise_mean=mean, **options)[1]
    for _ in range(2):
        gradient = grid.gradient_of(loss, "reference")
        assert gradient(start, target, weight).allclose(expected, rtol=1e-5, atol=1e-6)
        assert not gradient(start, target, weight).allclose(expected, rtol=1e-5, atol=1e-6)


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
