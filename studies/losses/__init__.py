"""`python -m studies.losses`: the page and the pictures of all losses, and the README's list of them.

Both are made of the registry, `icr_kernels.variants`; what is said around it is in `page.md` and `notes.py`.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from icr_kernels.variants import (
    COMMON_LOSS_NAMES,
    DISTANCES,
    LOSSES,
    PENALTIES,
    PENALTY_NAMES,
    Parameter,
    Variant,
)

from .notes import CHECKED, NOTES

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "losses.md", ROOT / "README.md"
FIGURES = ROOT / "docs" / "figures" / "losses"
TEMPLATE = Path(__file__).with_name("page.md")
PLACE = re.compile(r"^\{\{ (\w+) \}\}$", re.MULTILINE)
BLOCK = re.compile(r"(<!-- registry: (\w+) -->).*?(<!-- end of registry -->)", re.DOTALL)
WIDTH = 136


def groups() -> dict[str, list[Variant]]:
    """The losses of each part of the page: every one is in one of them."""
    found: dict[str, list[Variant]] = {"common": [], "powers": [], "more": [], "distances": []}
    for variant in LOSSES:
        name = variant.name
        group = "common" if name in COMMON_LOSS_NAMES else "powers" if name.startswith("alpha_") else "more"
        found["distances" if name in DISTANCES else group].append(variant)
    return found


def page() -> str:
    """docs/losses.md"""
    parts: dict[str, Callable[[], str]] = {
        **{name: lambda variants=variants: sections(variants) for name, variants in groups().items()},  # type: ignore[misc]
        "overview": overview,
        "penalties": penalties,
        "pixels": pixels,
    }
    return PLACE.sub(lambda match: parts[match[1]](), TEMPLATE.read_text())


def readme() -> str:
    """The README with its lists."""
    blocks = {"losses": lambda: listed(variant.name for variant in LOSSES), "penalties": lambda: listed(PENALTY_NAMES)}
    return BLOCK.sub(lambda match: match[1] + blocks[match[2]]() + match[3], README.read_text())


def listed(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(f"`{name}`" for name in names), WIDTH, subsequent_indent="  ")


def write(*, figures: bool = True) -> None:
    for path, text in ((PAGE, page()), (README, readme())):
        path.write_text(text)
        print(f"written: {path.relative_to(ROOT)}")
    if figures:
        from .figures import draw

        for path in draw(FIGURES):
            print(f"written: {path.relative_to(ROOT)}")


def number(value: float) -> str:
    """1e-06 is 1e-6."""
    return re.sub(r"e([+-])0*(\d+)", lambda match: f"e{match[1].strip('+')}{match[2]}", f"{value:g}")


def unit(parameter: Parameter) -> str:
    return {0: "", 1: "pixel", 2: "pixel²"}[parameter.power]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def overview() -> str:
    def line(variant: Variant) -> tuple[str, ...]:
        parameters = ", ".join(f"{each.name} {number(each.default)}" for each in variant.parameters)
        modifiers = "" if variant.name in DISTANCES else "yes"
        return f"[`{variant.name}`](#{variant.name})", variant.value_range, parameters, modifiers

    head = ("`loss=`", "range", "parameters and their defaults", "takes `inner`, `focaler`, `wise`")
    return markdown(head, map(line, LOSSES))


def sections(variants: Iterable[Variant]) -> str:
    return "\n\n".join(map(section, variants))


def section(variant: Variant) -> str:
    facts = [
        f"Range: {variant.value_range}",
        f"Source: {variant.source}",
        f"Constant under differentiation: {variant.held_constant}",
    ]
    if variant.name in CHECKED:
        facts.append(f"Checked against: {CHECKED[variant.name]}")
    if variant.ports:
        facts.append(f"Where ports differ: {variant.ports}")
    parts = [
        f"### `{variant.name}`",
        f"```\n{formula_of(variant)}\n```",
        "\n".join(wrapped(f"- {fact}", "  ") for fact in facts),
        *map(wrapped, NOTES.get(variant.name, ())),
    ]
    if variant.parameters:
        parts.append(table_of(variant.parameters))
    parts.append(f"![Value and gradient of {variant.name}](figures/losses/{variant.name}.png)")
    return "\n\n".join(parts)


def formula_of(variant: Variant) -> str:
    """A line for the loss and one for each symbol that is its own."""
    lines = re.split(r"(?<=,) (?=\w+ = )", variant.formula)
    return "\n".join(wrapped(line, "    ") for line in lines)


def table_of(parameters: Iterable[Parameter]) -> str:
    rows = (
        (
            f"`{each.name}`",
            number(each.default),
            f"{number(each.least)} to {number(each.most)}",
            unit(each),
            each.meaning,
        )
        for each in parameters
    )
    return markdown(("parameter", "default", "bounds", "unit", "meaning"), rows)


def pixels() -> str:
    """The losses whose parameters have a unit."""
    becomes = {1: "{} / scale", 2: "{} / scale²"}
    rows = (
        (f"`{variant.name}`", f"`{each.name}`", number(each.default), becomes[each.power].format(each.name))
        for variant in LOSSES
        for each in variant.parameters
        if each.power
    )
    return markdown(("`loss=`", "parameter", "default, in pixels", "what the formula gets"), rows)


def penalties() -> str:
    def line(variant: Variant) -> tuple[str, ...]:
        parameters = ", ".join(
            f"`{each.name}` {number(each.default)}, {number(each.least)} to {number(each.most)}"
            for each in variant.parameters
        )
        return (
            f"`{variant.name}`",
            variant.formula,
            parameters,
            variant.value_range,
            variant.held_constant,
            variant.source,
        )

    head = ("`penalty=`", "value", "parameter", "range", "constant under differentiation", "source")
    return markdown(head, map(line, PENALTIES))
