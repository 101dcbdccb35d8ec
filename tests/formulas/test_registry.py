"""The registry names what the kernels, the reference and the documentation have, in the same order."""

import re

import icr_kernels as icr
from icr_kernels import formulas
from icr_kernels.variants import LOSS_NAMES, LOSSES, MOST_PARAMETERS, PENALTIES, PENALTY_NAMES


def test_compiled_losses_are_those_of_the_registry(extension):
    _assert_same_rows((name for name, _ in extension.losses()), LOSS_NAMES, "csrc/iou_losses.h")


def test_compiled_penalties_are_those_of_the_registry(extension):
    _assert_same_rows((name for name, _ in extension.penalties()), PENALTY_NAMES, "csrc/penalties.h")


def test_compiled_parameters_are_those_of_the_registry(extension):
    """Numbers reach a formula by their places, and pixels by the power of the unit."""
    for compiled, registered in ((extension.losses(), LOSSES), (extension.penalties(), PENALTIES)):
        expected = [(each.name, [(one.name, one.power) for one in each.parameters]) for each in registered]
        assert compiled == expected


def test_parameters_have_their_defaults_within_bounds_and_are_few():
    for variant in (*LOSSES, *PENALTIES):
        assert len(variant.parameters) <= MOST_PARAMETERS
        for each in variant.parameters:
            assert each.least <= each.default <= each.most and each.meaning


def test_reference_losses_are_those_of_the_registry():
    names = [function.__name__ for function in formulas.LOSSES.values()]
    _assert_same_rows(names, LOSS_NAMES, "icr_kernels/formulas.py")


def test_reference_penalties_are_those_of_the_registry():
    names = [function.__name__ for function in formulas.PENALTIES.values()]
    registered = tuple(f"{name.replace('+', '_')}_penalty" for name in PENALTY_NAMES)
    _assert_same_rows(names, registered, "icr_kernels/formulas.py")


def _assert_same_rows(names, registered: tuple[str, ...], place: str) -> None:
    """The position of a row is the number the kernels know it by, so the order counts."""
    names = list(names)
    missing = [name for name in registered if name not in names]
    unknown = [name for name in names if name not in registered]
    assert not missing, f"{place} lacks {missing}, which icr_kernels/variants.py lists"
    assert not unknown, f"icr_kernels/variants.py lacks {unknown}, which {place} has"
    assert names == list(registered), f"{place} and icr_kernels/variants.py list them in different orders"


def test_documentation_names_every_loss_and_penalty():
    for function in (icr.icr_loss, icr.icr_terms, icr.icr_loss_and_grad):
        listed = set(re.findall(r'"([a-z0-9_+]+)"', function.__doc__))
        assert set(LOSS_NAMES) <= listed and set(PENALTY_NAMES) <= listed, f"docstring of {function.__name__}"
