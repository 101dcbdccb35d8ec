"""`python -m studies.regression`: what losses and penalties do to boxes, without a network.

Regresses the cases of the DIoU paper with the common losses, a share of them with every loss and modifier, then plates
of cars with every penalty, and leaves tables (CSV, Markdown), figures (PNG) and a summary.
"""

import csv
import importlib.util
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from icr_kernels.backends import choose
from icr_kernels.terminal import progress, table
from icr_kernels.variants import COMMON_LOSS_NAMES, NO_PENALTY

from . import grid, plates, protocol, published
from .grid import UNSOLVED
from .plates import Outcome, Scenario
from .protocol import CASES_PER_POINT, ITERATIONS, POINTS, Regression

CASES = POINTS * CASES_PER_POINT
QUICK_CASES = CASES // 50
# The published gradients have no kernel, so they get this many of the anchor points.
PUBLISHED_POINTS = 100
# Eager PyTorch is timed on this share of the iterations of one slab, and scaled up.
EAGER_ITERATIONS = 0.1
# What a run is made of.
PARTS = ("paper", "grid", "plates")


def run(
    output: Path,
    *,
    parts: Sequence[str] = PARTS,
    cases: int = CASES,
    iterations: int = ITERATIONS,
    backend: str | None = None,
    figures: bool = True,
    seed: int = 0,
) -> None:
    """The study, or some `PARTS` of it, written to the directory ``output``. ``cases`` is rounded up to whole anchor
    points of 343 each.

    Raises ValueError or RuntimeError if ``backend`` is unknown or cannot run here.
    """
    backend = choose(backend, "cpu").name
    output.mkdir(parents=True, exist_ok=True)
    points = protocol.anchor_points(-(-cases // CASES_PER_POINT), seed)
    print(f"backend {backend}, {torch.get_num_threads()} threads, seed {seed}, {iterations} iterations\n")
    if figures and importlib.util.find_spec("matplotlib") is None:
        print("The figures need matplotlib: pip install --group studies.")
        figures = False
    if "paper" in parts:
        run_paper(output, points, iterations, backend, figures)
    if "grid" in parts:
        run_grid(output, points[: grid.POINTS], iterations, backend, figures)
    if "plates" in parts:
        run_plates(output, min(plates.CASES, 10 * len(points)), iterations, backend, figures, seed)
    print(f"written to {output}/")


def run_paper(output: Path, points: Tensor, iterations: int, backend: str, figures: bool) -> None:
    """The common losses on the paper's cases, and the gradients of its program on some."""
    formula = {
        loss: protocol.regress(points, protocol.fused(loss=loss, backend=backend), iterations, backend, loss)
        for loss in COMMON_LOSS_NAMES
    }
    eager = {}
    if backend != "reference":
        eager = {loss: eager_seconds(points, loss, iterations) for loss in COMMON_LOSS_NAMES}
    few_points = points[:PUBLISHED_POINTS]
    as_published = {
        loss: protocol.regress(few_points, published.gradient(loss), iterations, backend, f"{loss} as published")
        for loss in published.LOSSES
    }
    print(paper_summary(formula, as_published, eager))
    write_regressions(output, points, {"formula": formula, "published": as_published}, eager)
    if figures:
        from . import figures as draw

        draw.error_curves(output / "error_curves.png", formula, as_published)
        draw.error_plane(output / "error_plane.png", points, formula)


def run_grid(output: Path, points: Tensor, iterations: int, backend: str, figures: bool) -> None:
    """Every loss with every modifier that it takes."""
    results = grid.regress(points, iterations, backend)
    outcomes = [result.outcome for result in results]
    text = grid.markdown(outcomes)
    print(f"Unsolved of {outcomes[0].cases:,} cases, and their mean final error\n\n{text}")
    write(output / "grid.csv", grid.Outcome._fields, outcomes)
    (output / "grid.md").write_text(text)
    if figures:
        from . import figures as draw

        draw.grid_curves(output / "grid_curves.png", results)
        draw.grid_table(output / "grid.png", outcomes)


def run_plates(output: Path, count: int, iterations: int, backend: str, figures: bool, seed: int) -> None:
    """The common losses with every penalty."""
    scenarios = plates.scenarios(count, seed)
    jobs = [(scenario, *choice) for scenario in scenarios for choice in plates.choices()]
    outcomes = [plates.regress(*job, iterations, backend) for job in progress(jobs, "plates")]
    print(plates_summary(scenarios, outcomes))
    write(output / "plates.csv", Outcome._fields, outcomes)
    if figures:
        from . import figures as draw

        draw.penalty_fields(output / "penalty_fields.png")
        draw.scenarios(output / "plates.png", outcomes)


def eager_seconds(points: Tensor, loss: str, iterations: int) -> float:
    """What the descent of all points would take in eager PyTorch, measured on `EAGER_ITERATIONS` of one slab."""
    start, target = protocol.cases(points[: protocol.POINTS_PER_SLAB])
    few = max(1, round(EAGER_ITERATIONS * iterations))
    gradient = protocol.fused(loss=loss, backend="reference")
    protocol.descend(start, target, gradient, 1, "reference")
    began = time.perf_counter()
    protocol.descend(start, target, gradient, few, "reference")
    return (time.perf_counter() - began) * (len(points) * CASES_PER_POINT / len(start)) * (iterations / few)


def paper_summary(formula: dict[str, Regression], as_published: dict[str, Regression], eager: dict[str, float]) -> str:
    """The final errors of both gradients, and in which order they put the losses."""

    def cells(loss: str, result: Regression) -> list[str]:
        final = result.final_errors
        return [
            loss,
            f"{result.errors[-1]:.5f}",
            f"{final.median():.5f}",
            f"{100 * (final > UNSOLVED).float().mean():.2f} %",
            f"{result.ious.mean():.4f}",
            f"{result.seconds:.1f} s",
        ]

    head = ["loss", "mean error", "median", f"> {UNSOLVED}", "mean IoU", "time"]
    rows = [[*cells(loss, result), f"{eager[loss]:.0f} s" if eager else "-"] for loss, result in formula.items()]
    seconds = sum(result.seconds for result in formula.values())
    rows.append(["all", "", "", "", "", f"{seconds:.1f} s", f"{sum(eager.values()):.0f} s" if eager else "-"])
    paper = " > ".join(published.LOSSES)
    means = {loss: float(result.errors[-1]) for loss, result in formula.items()}
    medians = {loss: float(result.final_errors.median()) for loss, result in formula.items()}
    return "\n".join(
        [
            f"Final error of {_cases(formula)} cases, gradients of the formulas",
            table([*head, "eager, scaled up"], rows, "lrrrrrr"),
            f"order of the means:   {_order(means)}",
            f"order of the medians: {_order(medians)}",
            f"order in the paper:   {paper}",
            "",
            f"Final error of {_cases(as_published)} cases, gradients of the paper's own simulation",
            table(head, [cells(loss, result) for loss, result in as_published.items()], "lrrrrr"),
            "",
        ]
    )


def _cases(results: dict[str, Regression]) -> str:
    return f"{next(iter(results.values())).final_errors.numel():,}"


def _order(values: dict[str, float]) -> str:
    return " > ".join(sorted(values, key=lambda loss: -values[loss]))


def plates_summary(scenarios: Sequence[Scenario], outcomes: Sequence[Outcome], loss: str = "ciou") -> str:
    """The mean final IoU of one base loss, alone and with each penalty, by scenario."""
    ious = {
        (outcome.penalty, outcome.weight, outcome.scenario): outcome.iou for outcome in outcomes if outcome.loss == loss
    }
    rows = [
        [
            "alone" if penalty == NO_PENALTY else f"{weight:g} x {penalty}",
            *(f"{ious[penalty, weight, scenario.name]:.3f}" for scenario in scenarios),
        ]
        for penalty, weight in dict.fromkeys((penalty, weight) for penalty, weight, _ in ious)
    ]
    head = [f"{loss}", *(scenario.name for scenario in scenarios)]
    count = len(scenarios[0].start)
    return "\n".join(
        [f"Mean final IoU of plates, {count:,} pairs per scenario", table(head, rows, "l" + "r" * len(scenarios)), ""]
    )


def write_regressions(
    output: Path, points: Tensor, results: dict[str, dict[str, Regression]], eager: dict[str, float]
) -> None:
    """regression.csv (one row per loss), curves.csv (one per iteration) and plane.csv (one per anchor point)."""
    regressions, curves, plane = [], [], []
    for gradient, by_loss in results.items():
        for loss, result in by_loss.items():
            final = result.final_errors
            statistics = (result.errors[-1], final.median(), (final > UNSOLVED).float().mean(), result.ious.mean())
            scaled = eager.get(loss, "") if gradient == "formula" else ""
            regressions.append((gradient, loss, final.numel(), *map(float, statistics), result.seconds, scaled))
            curves += [(gradient, loss, step, error) for step, error in enumerate(result.errors.tolist(), start=1)]
            at_points = zip(points[: len(final)].tolist(), final.mean(1).tolist(), strict=True)
            plane += [(gradient, loss, *point, error) for point, error in at_points]
    columns = ("mean_error", "median_error", "unsolved", "mean_iou", "seconds", "eager_seconds_scaled")
    write(output / "regression.csv", ("gradient", "loss", "cases", *columns), regressions)
    write(output / "curves.csv", ("gradient", "loss", "iteration", "mean_error"), curves)
    write(output / "plane.csv", ("gradient", "loss", "x", "y", "mean_final_error"), plane)


def write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file; numbers with seven significant digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows([f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
