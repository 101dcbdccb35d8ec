"""`python -m studies.losses`: page, pictures and the README's lists are what it would make of the registry now."""

import dataclasses
import re

import pytest
import torch

import icr_kernels as icr
import studies.losses
from frameworks import need
from icr_kernels.variants import FURTHER_LOSSES, LOSS_NAMES, LOSSES, PENALTIES, Parameter
from studies.losses import __main__, curves, notes

TEXT = studies.losses.PAGE.read_text()
SECTIONS = {part.split("`")[1]: part for part in re.split(r"^#{2,3} ", TEXT, flags=re.MULTILINE) if part[0] == "`"}
RUN = "run `python -m studies.losses`"


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_page_is_what_the_command_writes():
    assert studies.losses.page() == TEXT, RUN


def test_lists_of_the_readme_are_what_the_command_writes():
    assert studies.losses.readme() == studies.losses.README.read_text(), RUN


def test_command_writes_both(monkeypatch, tmp_path, capsys):
    for name in ("PAGE", "README"):
        copy = tmp_path / getattr(studies.losses, name).name
        copy.write_text(getattr(studies.losses, name).read_text().replace("`giou`", "`nothing`"))
        monkeypatch.setattr(studies.losses, name, copy)
    monkeypatch.setattr(studies.losses, "ROOT", tmp_path)
    assert __main__.main(["--no-figures"]) == 0
    assert capsys.readouterr().out == "written: losses.md\nwritten: README.md\n"
    assert (tmp_path / "losses.md").read_text() == TEXT and "`giou`" in (tmp_path / "README.md").read_text()


def test_every_loss_has_a_section_that_says_what_the_registry_does():
    assert sorted(SECTIONS) == sorted(LOSS_NAMES)
    for variant in LOSSES:
        section = squeezed(SECTIONS[variant.name])
        for said in (variant.formula, variant.value_range, variant.source, variant.held_constant, variant.ports):
            assert squeezed(said) in section, (variant.name, said)
        for parameter in variant.parameters:
            assert f"| `{parameter.name}` | {parameter.default:g} |" in section and parameter.meaning in section


def test_every_penalty_has_a_row():
    for variant in PENALTIES:
        (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{variant.name}` | {variant.formula} |"))
        assert f"| {variant.held_constant} |" in line


def test_something_is_held_constant_where_the_gradient_is_not_the_slope():
    """Both are taken of each function on its own, the slope by differences."""
    generator = torch.Generator().manual_seed(0)
    corners = 10 * torch.rand(2, 50, 2, generator=generator, dtype=torch.float64)
    pred, other = torch.cat((corners, corners + 2 + 4 * torch.rand(corners.shape, generator=generator)), -1)

    def losses_of(pred, name):
        return icr.box_iou_loss(pred, other, loss=name, reduction="none", backend="reference")

    def penalties_of(pred, name):
        terms = icr.icr_terms(pred, other, other, loss="iou", penalty=name, penalty_weight=0.0, backend="reference")
        return terms.penalty

    for function, variants in ((losses_of, LOSSES), (penalties_of, PENALTIES)):
        for variant in variants:
            leaf = pred.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(leaf, variant.name).sum(), leaf)
            steps = 1e-6 * torch.eye(4, dtype=torch.float64)
            slope = torch.stack(
                [(function(pred + h, variant.name) - function(pred - h, variant.name)) / 2e-6 for h in steps], -1
            )
            is_slope = torch.allclose(gradient, slope, rtol=1e-5, atol=1e-7)
            assert is_slope == (variant.held_constant == "nothing"), variant.name


def test_who_sees_that_a_gradcheck_fails_finds_why():
    pred, cars = (torch.tensor([[0.0, 0, 4, 4]], dtype=torch.float64) + shift for shift in (0.0, 3.0))

    def passes(name):
        def penalty(boxes):
            return icr.icr_terms(boxes, cars, cars, loss="iou", penalty=name, backend="reference").penalty

        return torch.autograd.gradcheck(penalty, pred.clone().requires_grad_(), raise_exception=False)

    assert passes("containment") and not passes("pull") and not passes("containment+pull")
    section = squeezed(TEXT.partition("## Penalties")[2].partition("\n## ")[0])
    for text in (section, squeezed(icr.icr_loss.__doc__)):
        assert "gradcheck" in text and "rigid body" in text


def test_every_further_loss_says_what_it_was_checked_against():
    names = {variant.name for variant in FURTHER_LOSSES}
    assert names <= notes.CHECKED.keys() and notes.CHECKED.keys() | notes.NOTES.keys() <= set(LOSS_NAMES)


def test_a_parameter_more_is_a_row_more():
    parameter = Parameter("reach", 0.5, 1e-6, 1e9, "how far", power=2)
    variant = dataclasses.replace(LOSSES[0], parameters=(parameter,))
    assert "| `reach` | 0.5 | 1e-6 to 1e9 | pixel² | how far |" in studies.losses.section(variant)


def test_every_picture_is_of_what_losses_are_now():
    """Its numbers are in it; another machine may round otherwise."""
    need("matplotlib"), need("PIL")
    from studies.losses import figures

    expected = curves.pictures()
    assert {path.stem for path in studies.losses.FIGURES.glob("*.png")} == set(expected) >= set(LOSS_NAMES), RUN
    for name, numbers in expected.items():
        path = studies.losses.FIGURES / f"{name}.png"
        assert figures.numbers_of(path) == pytest.approx(numbers, rel=2e-3, abs=1e-6), f"{path.name}: {RUN}"
        assert f"(figures/losses/{name}.png)" in TEXT
        assert path.stat().st_size < 40_000


def test_drawn_gradient_is_what_training_sees():
    """c2 of wiou is constant, so its gradient is not the slope of its value."""
    way, along = curves.ways(1000)["moved"]
    for loss, is_slope in (("diou", True), ("wiou", False)):
        curve = curves.curve(loss, way, along)
        slope = torch.gradient(curve.value, spacing=(along,))[0]
        far = along > 1.5
        assert torch.allclose(slope[far], curve.gradient[far], atol=1e-3) == is_slope


def test_picture_carries_its_numbers(tmp_path):
    need("matplotlib"), need("PIL")
    from studies.losses import figures

    figures.save(figures.of_loss("nwd"), tmp_path / "a.png", [0.5, -1.25e-7])
    assert figures.numbers_of(tmp_path / "a.png") == [0.5, -1.25e-7]
