"""The README's tables of losses and penalties are those of the registry, and its numbers those of the measurements."""

from pathlib import Path

import pytest

from benchmarks import plots, readme, results
from icr_kernels.variants import LOSSES, PENALTIES

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_tables_are_the_registry():
    rows = [
        line for line in README.splitlines() if line.startswith("| `") and line.count("|") == 5 and "=`" not in line
    ]
    expected = [
        f"| `{each.name}` | {each.formula} | {each.value_range} | {each.source} |" for each in (*LOSSES, *PENALTIES)
    ]
    assert rows == expected


@pytest.mark.parametrize("path", readme.DOCUMENTS, ids=lambda path: path.name)
def test_numbers_are_those_of_the_measurements(path):
    text = path.read_text()
    assert len(readme.BLOCK.findall(text)) == text.count("<!-- measured: ") >= 4
    assert text == readme.filled(text, readme.machines()), "run `python -m benchmarks readme`"


def test_plots_are_those_of_the_measurements():
    image = pytest.importorskip("PIL.Image")
    stale = [
        str(path.relative_to(results.ROOT))
        for machine in readme.machines()
        for path in machine.folder.glob("*.png")
        if image.open(path).text.get(plots.DIGEST) != plots.digest(machine.rows)
    ]
    assert stale == [], "run `python -m benchmarks plot` on the folder"
