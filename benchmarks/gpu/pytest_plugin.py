"""A pytest plugin of the GPU run: what became of each test is written down at once, and lost with no interruption; and
tests can be collected on a machine without a GPU as on one that has it."""

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="write a line of JSON for each test that has ended")
    parser.addoption("--as-if-there-were-a-gpu", action="store_true", help="for --collect-only")


def pytest_configure(config: pytest.Config) -> None:
    record = config.getoption("--record")
    # A worker of pytest-xdist reports to the process that has started it, which writes.
    if record is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(record))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    if early_config.known_args_namespace.as_if_there_were_a_gpu:
        import torch

        torch.cuda.is_available = lambda: True
        from icr_kernels import builds

        builds.CUDA_ERROR = builds.TRITON_ERROR = None


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
