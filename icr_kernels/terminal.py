"""What the commands show in a terminal: tables and a progress line."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Aligned columns under a head; ``align`` has one letter a column: l or r."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def progress(items: Sequence[Item], label: str) -> Iterator[Item]:
    """The items one by one, with a line on stderr that says how many are done, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    began = time.monotonic()
    for done, item in enumerate(items):
        bar = ("#" * (20 * done // len(items))).ljust(20, ".")
        left = f", {(time.monotonic() - began) / done * (len(items) - done):.0f} s left" if done else ""
        print(f"\r\033[K{label} {bar} {done}/{len(items)}{left}", end="", file=sys.stderr, flush=True)
        yield item
    print("\r\033[K", end="", file=sys.stderr, flush=True)
