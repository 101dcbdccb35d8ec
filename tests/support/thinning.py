"""Less of the grids of tests that run in Triton's interpreter, where a launch takes a tenth of a second.

Of two parameters what is left has every value, of three every pair of values, and so on: all but one of the parameters
in every combination. The whole grid is that of the other backends, and that of Triton on a GPU.
"""

import itertools
import random

import pytest

from inputs import INTERPRETED


def parameters_of(item: pytest.Item) -> list[list[str]]:
    """The names that stand together in a `parametrize`, but for the backend; and those of fixtures, each alone."""
    marks = [mark.args[0] for mark in item.iter_markers("parametrize")]
    found = [each.replace(" ", "").split(",") if isinstance(each, str) else [*each] for each in marks]
    of_fixtures = item.callspec.params.keys() - set(itertools.chain(*found))
    return [names for names in found if names != ["backend"]] + [[name] for name in sorted(of_fixtures)]


def thinned(items: list[pytest.Item]) -> list[pytest.Item]:
    """Takes the tests that go out of the list, and returns them."""
    grids: dict[str, list[tuple[pytest.Item, set]]] = {}
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if values.get("backend") in INTERPRETED or (INTERPRETED and values and item.get_closest_marker("in_triton")):
            point = [(*names, *(repr(values[name]) for name in names)) for names in parameters_of(item)]
            parts = set(itertools.combinations(point, max(len(point) - 1, 1)))
            grids.setdefault(item.nodeid.partition("[")[0], []).append((item, parts))
    dropped = []
    for grid in grids.values():
        # Of an order without rule, or the first values of all but one parameter would stand for the rest.
        random.Random(0).shuffle(grid)
        while grid:
            kept, covered = max(grid, key=lambda each: len(each[1]))
            grid = [(item, parts - covered) for item, parts in grid if item is not kept]
            dropped += [item for item, parts in grid if not parts]
            grid = [each for each in grid if each[1]]
    taken = set(dropped)
    items[:] = [item for item in items if item not in taken]
    return dropped
