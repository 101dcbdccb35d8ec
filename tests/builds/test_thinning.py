"""Which tests of a grid are left in Triton's interpreter."""

import itertools

import pytest

from thinning import covering


@pytest.mark.parametrize("sizes", [(5,), (4, 9), (4, 7, 3), (3, 2, 2, 4)], ids=str)
def test_all_but_one_of_the_parameters_are_in_every_combination(sizes):
    points = [tuple(map(str, point)) for point in itertools.product(*map(range, sizes))]
    left = covering(points)
    assert len(set(left)) == len(left) and set(left) <= set(points)
    for places in itertools.combinations(range(len(sizes)), max(len(sizes) - 1, 1)):
        wanted, found = ({tuple(point[place] for place in places) for point in each} for each in (points, left))
        assert found == wanted
    # As few as there are combinations of those with the most values, or not many more.
    fewest = len(points) // min(sizes) if len(sizes) > 1 else len(points)
    assert fewest <= len(left) <= 1.25 * fewest


def test_values_that_stand_together_are_all_left():
    points = [(loss, dtype) for loss in ("iou xyxy", "iou xywh", "ciou xyxy") for dtype in ("float64", "float32")]
    assert sorted(loss for loss, _ in covering(points)) == ["ciou xyxy", "iou xywh", "iou xyxy"]


def test_a_test_without_parameters_is_left():
    assert covering([()]) == [()]
