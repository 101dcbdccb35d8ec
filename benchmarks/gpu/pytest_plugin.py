"""A pytest plugin of the GPU run: what became of each test is written down at once, and lost with no interruption; a
kernel that faults fails no other test; and tests can be collected on a machine without a GPU as on one that has it."""

import json
import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="write a line of JSON for each test that has ended")
    parser.addoption("--expect-package-in", type=Path, metavar="FOLDER", help="run no tests of another icr_kernels")
    parser.addoption("--as-if-there-were-a-gpu", action="store_true", help="for --collect-only")


def pytest_configure(config: pytest.Config) -> None:
    record = config.getoption("--record")
    # A worker of pytest-xdist reports to the process that has started it, which writes.
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(EndOfALostWorker())
    elif record is not None:
        config.pluginmanager.register(Recorder(record))


def pytest_sessionstart(session: pytest.Session) -> None:
    folder = session.config.getoption("--expect-package-in")
    if folder is not None:
        import icr_kernels

        found = Path(icr_kernels.__file__).resolve()
        if folder.resolve() not in found.parents:
            raise pytest.UsageError(f"--expect-package-in: expected icr_kernels in {folder}, got {found}")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    if early_config.known_args_namespace.as_if_there_were_a_gpu:
        import torch

        torch.cuda.is_available = lambda: True
        from icr_kernels import builds

        builds.CUDA_ERROR = builds.TRITON_ERROR = None


class EndOfALostWorker:
    """A worker whose device is lost ends: pytest-xdist starts another for the tests that are left."""

    failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    @pytest.hookimpl(trylast=True)  # what has failed is told first
    def pytest_runtest_logfinish(self) -> None:
        import torch

        if self.failed and torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(1)
        self.failed = False


class Recorder:
    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.write(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(report)

    def write(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        message = (lines or report.longreprtext.splitlines()[-1:] or [""])[0].removeprefix("E").strip()
        with self.file.open("a") as file:
            file.write(json.dumps({"name": report.nodeid, "outcome": report.outcome, "message": message[:300]}) + "\n")
