"""All cases."""

import re
from collections.abc import Sequence

from . import aligned, assignment, detection, matching, training
from .case import Case

CASES: tuple[Case, ...] = (
    *aligned.cases(),
    *matching.cases(),
    *assignment.cases(),
    *detection.cases(),
    *training.cases(),
)


def chosen(patterns: Sequence[str] = (), full: bool = False) -> list[Case]:
    """The cases whose name matches one of the patterns (none: all), of the quick profile or of both."""
    return [
        case
        for case in CASES
        if (full or not case.full)
        and (not patterns or any(re.search(pattern, str(case), re.IGNORECASE) for pattern in patterns))
    ]
