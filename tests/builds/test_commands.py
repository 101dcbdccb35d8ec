"""`python -m icr_kernels check`: what it finds and answers, and that a loss and a penalty more are no trouble."""

import functools
import re

import pytest

import extended_copy
from extended_copy import LOSS, PENALTY
from icr_kernels import __main__, formulas, selfcheck
from icr_kernels.variants import PENALTY_NAMES


@pytest.fixture
def quick_check(monkeypatch):
    monkeypatch.setattr(selfcheck, "run", functools.partial(selfcheck.run, losses=("iou",), pairs=30))


def test_check(quick_check, capsys):
    assert __main__.main(["check", "--backend", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("all ") and all(line.endswith(" ok") for line in lines[2:-2])
    assert {f"reference (cpu) iou {penalty}" for penalty in ("none", *PENALTY_NAMES)} <= {
        " ".join(line.split()[:4]) for line in lines
    }


def test_check_finds_what_is_wrong(quick_check, extension, monkeypatch, capsys):
    """A reference that is a percent off stands for a kernel that is."""
    monkeypatch.setitem(formulas.LOSSES, "iou", lambda p, g, eps: 1.01 * formulas.iou(p, g, eps))
    assert __main__.main(["check", "--backend", "cpu"]) == 1
    out = capsys.readouterr().out
    failed = [line for line in out.splitlines() if line.endswith("FAILED")]
    assert len(failed) == 1 + len(PENALTY_NAMES) and all(line.startswith("cpu (cpu)  iou ") for line in failed)
    assert f"{len(failed)} of " in out.splitlines()[-1]


def test_commands_that_are_refused(capsys):
    for arguments, message in (
        (["check", "--backend", "none"], "expected one of "),
        (["study"], "invalid choice: 'study'"),
    ):
        with pytest.raises(SystemExit) as status:
            __main__.main(arguments)
        assert status.value.code == 2 and message in capsys.readouterr().err


def test_check_with_a_loss_and_a_penalty_more(tmp_path):
    script = f"""
import functools, sys
from icr_kernels import __main__, selfcheck
selfcheck.run = functools.partial(selfcheck.run, losses=({LOSS!r},), pairs=30)
sys.exit(__main__.main(["check", "--backend", "reference"]))
"""
    lines = extended_copy.run(extended_copy.copied(tmp_path), "-c", script).splitlines()
    assert lines[-1].startswith("all ")
    checked = [tuple(re.split(" {2,}", line)[1:3]) for line in lines if line.startswith("reference (cpu)  ")]
    assert [penalty for loss, penalty in checked if loss == LOSS] == ["none", *PENALTY_NAMES, PENALTY, "all pairs"]
    assert (f"{PENALTY}_penalty", "all pairs") in checked
