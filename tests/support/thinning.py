"""Less of the grids of tests that run in Triton's interpreter, where a launch takes a tenth of a second.

Of two parameters what is left has every value, of three every pair of values, and so on: all but one of the parameters
in every combination. The whole grid is that of the other backends, and that of Triton on a GPU.
"""

import itertools
import random

import pytest

from inputs import INTERPRETED

# The values of a test's parameters, one for each.
Point = tuple[str, ...]


def parameters_of(item: pytest.Item) -> list[list[str]]:
    """The names that stand together in a `parametrize`, but for the backend; and those of fixtures, each alone."""
    marks = [mark.args[0] for mark in item.iter_markers("parametrize")]
    found = [each.replace(" ", "").split(",") if isinstance(each, str) else [*each] for each in marks]
    of_fixtures = item.callspec.params.keys() - set(itertools.chain(*found))
    return [names for names in found if names != ["backend"]] + [[name] for name in sorted(of_fixtures)]


def covering(points: list[Point]) -> list[Point]:
    """So few of the points that all but one of their places still have every combination of values."""

    def parts(point: Point) -> set:
        return set(itertools.combinations(enumerate(point), max(len(point) - 1, 1)))

    # Of an order without rule, or the first values of all but one parameter would stand for the rest.
    left, chosen = {point: parts(point) for point in random.Random(0).sample(points, len(points))}, []
    while left:
        best = max(left, key=lambda point: len(left[point]))
        chosen.append(best)
        covered = left.pop(best)
        left = {point: rest - covered for point, rest in left.items() if rest - covered}
    return chosen


def thinned(items: list[pytest.Item]) -> list[pytest.Item]:
    """Takes the tests that go out of the list, and returns them."""
    grids: dict[str, dict[Point, pytest.Item]] = {}
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if values.get("backend") in INTERPRETED or (INTERPRETED and values and item.get_closest_marker("in_triton")):
            point = tuple(repr([values[name] for name in names]) for names in parameters_of(item))
            grids.setdefault(item.nodeid.partition("[")[0], {})[point] = item
    gone = set()
    for grid in grids.values():
        gone |= {grid[point] for point in grid.keys() - set(covering([*grid]))}
    items[:] = [item for item in items if item not in gone]
    return [*gone]
