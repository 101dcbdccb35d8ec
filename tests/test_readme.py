"""The README's tables of losses and penalties are those of the registry, and its training loop runs."""

from pathlib import Path

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
