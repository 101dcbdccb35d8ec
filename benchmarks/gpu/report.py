"""The report on a folder of results: what passed, which speed targets are met, the figures, and their plots."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import results
from .measure import COUNTED_SIZE
from .results import BOTH, Outcome, Row, Table

CLAMP, TORCHVISION = "eager, clamp form", "eager, torchvision"
COMPILED = ("torch.compile, clamp form", "torch.compile, reference")


def targets(table: Table) -> list[tuple[str, str, str, str]]:
    """Each speed target: what of, how much is wanted, what was measured, met or not."""
    found: list[tuple[str, str, str, str]] = []

    def target(what: str, wanted: str, value: float | None, form: str, met: Callable[[float], bool]) -> None:
        if value is None:
            found.append((what, wanted, "not measured", "not measured"))
        else:
            found.append((what, wanted, form.format(value), "yes" if met(value) else "no"))

    row = table.row("device", "cuda", "forward with gradient", 10_000_000)
    target(
        "device time, forward with gradient, 10,000,000 pairs, of a copy of the same 64 bytes a pair",
        ">= 90 %",
        None if row is None else float(row["fraction_of_copy"]),
        "{:.1%}",
        lambda x: x >= 0.9,
    )
    for name in (CLAMP, TORCHVISION):
        for pairs, times in ((1_000, 25), (10_000, 25), (100_000, 25), (10_000_000, 20)):
            target(
                f"end to end, forward + backward, {pairs:,} pairs, against {name}",
                f">= {times} x",
                table.ratio("end to end", BOTH, pairs, [name]),
                "{:.1f} x",
                lambda x, times=times: x >= times,  # type: ignore[misc]
            )
    for pairs in (1_000, 10_000, 100_000):
        target(
            f"end to end, forward + backward, {pairs:,} pairs, against the faster torch.compile(dynamic=True)",
            ">= 3 x",
            table.ratio("end to end", BOTH, pairs, COMPILED),
            "{:.1f} x",
            lambda x: x >= 3,
        )
    target(
        "device time, forward + backward, 10,000,000 pairs, against the faster torch.compile(dynamic=True)",
        ">= 1.2 x",
        table.ratio("device", BOTH, 10_000_000, COMPILED),
        "{:.2f} x",
        lambda x: x >= 1.2,
    )
    target(
        "host time, one forward with gradient, 1,000 pairs",
        "<= 15 us",
        table.median("host", "cuda", "forward with gradient", 1_000),
        "{:.1f} us",
        lambda x: x <= 15,
    )
    ratios = [
        ratio
        for quantity in table.quantities("device")
        for pairs in table.sizes("device")
        if (ratio := table.ratio("device", quantity, pairs, ["triton"])) is not None
    ]
    target(
        "device time, Triton against cuda, the worst of all sizes and quantities",
        "<= 1.3 x",
        max(ratios, default=None),
        "{:.2f} x",
        lambda x: x <= 1.3,
    )
    return found


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))


def time_of(us: float) -> str:
    return f"{us:,.1f} us" if us < 1_000 else f"{us / 1_000:,.2f} ms"


def figure_table(table: Table, figure: str, quantity: str, extra: Callable[[Row], str]) -> str:
    """Medians by implementation and number of pairs, with what ``extra`` says of each row."""
    sizes = table.sizes(figure)
    lines = []
    for name in table.names(figure):
        rows = [table.row(figure, name, quantity, pairs) for pairs in sizes]
        if any(rows):
            lines.append([name, *("" if row is None else time_of(float(row["p50"])) + extra(row) for row in rows)])
    return markdown(["", *(f"{pairs:,} pairs" for pairs in sizes)], lines)


def share_of_copy(row: Row) -> str:
    return "" if row["fraction_of_copy"] == "" else f" ({float(row['fraction_of_copy']):.0%})"


def spread(row: Row) -> str:
    return f" ({float(row['p20']):,.1f} to {float(row['p80']):,.1f})"


def counts_table(table: Table, quantity: str) -> str:
    units = list(dict.fromkeys(key[4] for key in table.rows if key[0] == "counts" and key[2] == quantity))
    lines = []
    for name in table.names("counts"):
        counts = [table.median("counts", name, quantity, COUNTED_SIZE, unit) for unit in units]
        lines.append([name, *("" if count is None else f"{count:,.0f}" for count in counts)])
    return markdown([quantity, *units], lines)


def figures(table: Table) -> list[str]:
    """The four figures, each in tables of its own."""
    lines: list[str] = []
    if table.sizes("device"):
        lines += ["## Time on the device", ""]
        lines += ["At cold cache, launches by the host not counted. In brackets: share of a copy of the same bytes."]
        for quantity in table.quantities("device"):
            lines += ["", f"**{quantity}**", "", figure_table(table, "device", quantity, share_of_copy)]
        lines.append("")
    if table.sizes("host"):
        lines += ["## Time of the host", ""]
        lines += ["A call in a loop that does not wait for the device (quantiles 20 and 80 %)."]
        for quantity in table.quantities("host"):
            lines += ["", f"**{quantity}**", "", figure_table(table, "host", quantity, spread)]
        lines.append("")
    if table.sizes("end to end"):

        def times_ours(row: Row) -> str:
            ratio = table.ratio("end to end", BOTH, int(row["pairs"]), [row["implementation"]])
            return "" if ratio is None else f" ({ratio:.1f}x)"

        lines += ["## End to end", ""]
        lines += ["Forward and backward through autograd, by the clock. In brackets: over cuda.", ""]
        lines += [figure_table(table, "end to end", BOTH, times_ours), ""]
    if table.sizes("counts"):
        lines += ["## Memory, launches, waiting", "", f"{COUNTED_SIZE:,} pairs, gradient to the prediction.", ""]
        for quantity in table.quantities("counts"):
            lines += [counts_table(table, quantity), ""]
    return lines


def write(folder: Path) -> Path:
    """Writes report.md and the plots into the folder, from whatever parts are there."""
    outcomes, rows = results.outcomes(folder), results.read(folder)
    machine = next((outcome.machine for outcome in reversed(outcomes.values()) if outcome.machine), {})
    device = machine.get("device") or next((row["device"] for row in rows), folder.name)
    lines = [f"# {device}", "", "CIoU + containment, float32, mean, valid boxes.", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items() if name != "device"]
    lines += ["", "## Parts", "", *parts_table(outcomes), ""]
    if rows:
        table = Table(rows)
        met = targets(table)
        reached = sum(each[3] == "yes" for each in met)
        lines += ["## Speed targets", "", f"{reached} of {len(met)} met.", ""]
        lines += [markdown(("target", "wanted", "measured", "met"), met), ""]
        lines += [*figures(table), *plot_links(folder, table), *unmeasured(rows)]
    for part, outcome in outcomes.items():
        if not outcome.ok and outcome.details:
            lines += [f"## What failed: {part}", "", "```", *outcome.details, "```", ""]
    path = folder / "report.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def parts_table(outcomes: dict[str, Outcome]) -> list[str]:
    lines = []
    for part in results.PARTS:
        outcome = outcomes.get(part)
        if outcome is None:
            lines.append(f"- {part}: not run")
        else:
            lines.append(
                f"- {part}: {'ok' if outcome.ok else '**FAILED**'}, {outcome.seconds:.0f} s, "
                f"{outcome.machine.get('date', '')}, {outcome.machine.get('commit', '')}: {outcome.summary}"
            )
    return lines


def unmeasured(rows: Iterable[Row]) -> list[str]:
    notes = dict.fromkeys(f"- {row['figure']}, {row['implementation']}: {row['note']}" for row in rows if row["note"])
    return ["## Without a result", "", *notes, ""] if notes else []


def plot_links(folder: Path, table: Table) -> list[str]:
    try:
        from . import plots
    except ImportError as error:
        return [f"No plots: {error}.", ""]
    return ["## Plots", "", *(f"![{text}]({path.name})" for path, text in plots.draw(folder, table)), ""]
