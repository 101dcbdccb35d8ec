"""What is said of the rows of a CSV: tables for the terminal and for Markdown, and the speed targets."""

import math
from collections.abc import Callable, Iterable, Sequence

from icr_kernels.terminal import table as text_table

from . import aligned
from .case import BOTH, COPY, DROP_IN, FILL, FORWARD
from .results import KEY, Row, Table, is_busy

LABELS = {
    "cpu": "icr_kernels",
    "cuda": "icr_kernels, CUDA",
    "triton": "icr_kernels, Triton",
    DROP_IN: "icr_kernels, drop-in module",
    COPY: "copy of the same bytes",
    FILL: "fill of the same memory",
}
OURS = ("cpu", "cuda", "triton")


def label(name: str) -> str:
    return LABELS.get(name, name)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))


def time_of(us: float) -> str:
    """Three digits, in the unit that they are read in."""
    for unit, size in (("µs", 1.0), ("ms", 1e3), ("s", 1e6)):
        if us < 999.5 * size or unit == "s":
            digits = max(0, 2 - math.floor(math.log10(max(us / size, 0.01))))
            return f"{us / size:,.{min(digits, 2)}f} {unit}"
    raise AssertionError


def size_of(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.2f} GiB"


# Numbers of a call, as a process of its own counts them.
CALLS = ("operators", "views", "synchronisations")


def calls_of(operators: float | None, views: float | None, waits: float | None) -> list[str]:
    """Of such numbers, how many operators are no views, and for how many a host would wait."""
    if operators is None or views is None or waits is None:
        return []
    return [f"{operators - views:,.0f}", f"{waits:,.0f}"]


def threads_of(count: int | str) -> str:
    return f"{count} thread{'s' * (int(count) != 1)}"


def agreement(one: Iterable[Row], other: Iterable[Row]) -> str:
    """How many times of two runs have quantiles (20 to 80 %) that overlap, how many ratios of them to this package's
    time, and which times have not; what a busy machine measured counts as neither."""

    def times(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
        return {
            tuple(str(row[name]) for name in KEY): row
            for row in rows
            if row["unit"] == "us" and row["p50"] != "" and not is_busy([row])
        }

    def ours(found: dict[tuple[str, ...], Row], key: tuple[str, ...]) -> Row | None:
        place = KEY.index("implementation")
        if key[place] in OURS:
            return None
        return next((row for name in OURS if (row := found.get((*key[:place], name, *key[place + 1 :])))), None)

    def overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
        return first[0] <= second[1] and second[0] <= first[1]

    def span(row: Row) -> tuple[float, float]:
        return float(row["p20"]), float(row["p80"])

    def ratio(row: Row, mine: Row) -> tuple[float, float]:
        (low, high), (least, most) = span(row), span(mine)
        return low / most, high / least

    before, after = times(one), times(other)
    both = [(before[key], after[key]) for key in before if key in after]
    ratios = [
        (ratio(before[key], mine), ratio(after[key], theirs))
        for key in before
        if key in after and (mine := ours(before, key)) and (theirs := ours(after, key))
    ]
    apart = [
        [
            f"{first['case']}, {first['shape']}, {first['dtype']}, {threads_of(first['threads'])}",
            label(first["implementation"]),
            time_of(float(first["p50"])),
            time_of(float(second["p50"])),
            f"{float(second['p50']) / float(first['p50']):.2f}",
        ]
        for first, second in both
        if not overlap(span(first), span(second))
    ]
    lines = [
        f"{len(both) - len(apart)} of {len(both)} times of quiet minutes agree within 20 to 80 %",
        f"{sum(overlap(*pair) for pair in ratios)} of {len(ratios)} ratios to this package's time do",
    ]
    if apart:
        lines.append(text_table(["", "", "first", "second", "x"], apart, "llrrr"))
    return "\n".join(lines)


def shown(rows: Sequence[Row]) -> str:
    """A case as the terminal shows it, with ratios of medians within this run."""
    times = [row for row in rows if row["figure"] == "end to end"]
    counts = {(row["implementation"], row["unit"]): row.get("p50") for row in rows if row["figure"] == "counts"}
    ours = {row["quantity"]: row["p50"] for row in times if row["implementation"] in OURS and "p50" in row}
    lines = []
    for row in times:
        if "p50" not in row:
            lines.append([label(row["implementation"]), row["note"], *[""] * 8])
            continue
        peak, *calls = (counts.get((row["implementation"], unit)) for unit in ("peak bytes", *CALLS))
        mine = ours.get(row["quantity"])
        share = row.get("fraction_of_copy")
        lines.append(
            [
                label(row["implementation"]),
                time_of(row["p50"]),
                time_of(row["p20"]),
                time_of(row["p80"]),
                f"{row['ns_per_pair']:,.2f}",
                f"{row['p50'] / mine:.2f}" if mine else "",
                f"{share:.0%}" if share else "",
                size_of(peak) if peak is not None else "",
                *(calls_of(*calls) or [""] * 2),
            ]
        )
    first = times[0]
    head = ("", "median", "20 %", "80 %", "ns per pair", "x ours", "of a copy", "peak memory", "operators", "waits")
    title = f"{first['case']}, {first['shape']}, {first['dtype']}, {first['quantity']}, {first['threads']} threads"
    if is_busy(times):
        title += (
            f"\nBUSY: its threads waited for a processor for {float(first['waited']):.0%} of the time; measure it again"
        )
    return f"\n{title}\n{text_table(head, lines, 'lrrrrrrrrr')}"


Target = tuple[str, str, str, str]


def target(what: str, wanted: str, value: float | None, form: Callable[[float], str], met: bool) -> Target:
    """What of, how much is wanted, what was measured, met or not."""
    if value is None:
        return what, wanted, "not measured", "not measured"
    return what, wanted, form(value), "yes" if met else "no"


def at_least(what: str, wanted: float, value: float | None, digits: int = 1) -> Target:
    met = value is not None and value >= wanted
    return target(what, f">= {wanted:g} x", value, lambda x: f"{x:.{digits}f} x", met)


def cpu_targets(rows: Sequence[Row], threads: int) -> list[Target]:
    """The targets on a CPU, met or not; a row without a number has not been measured."""
    torchvision = ["eager, torchvision"]
    dense, maximum, images = (
        Table(rows, case, threads=threads) for case in ("pairwise iou", "row maximum", "row maximum of 128 images")
    )
    main = Table(rows, aligned.MAIN, threads=threads)
    found = [
        at_least(
            f"{aligned.MAIN}, forward + backward, {pairs:,} pairs, against eager code in the clamp form",
            25,
            main.ratio("end to end", BOTH, pairs, ["eager, clamp form"], "cpu"),
        )
        for pairs in (1_000, 100_000, 1_000_000)
    ]
    found += [
        at_least(
            "IoU matrix of 8400 x 100 against torchvision's box_iou",
            50,
            dense.ratio("end to end", FORWARD, 840_000, torchvision, "cpu"),
        ),
        at_least(
            "row maximum of 8400 x 1000 against torchvision's box_iou and max",
            50,
            maximum.ratio("end to end", FORWARD, 8_400_000, torchvision, "cpu"),
        ),
    ]
    if is_busy(rows):
        undecided = "undecided: busy machine"
        found = [
            (what, wanted, value, undecided if met in ("yes", "no") else met) for what, wanted, value, met in found
        ]
    for what, table, pairs, unit, most in (
        ("row maximum of 1,000,000 x 2000: memory beyond the inputs", maximum, 2 * 10**9, "peak bytes", 64 * 2**20),
        (
            "row maximum of 128 images of 8400 x 4967: memory of the whole process",
            images,
            128 * 8_400 * 4_967,
            "process peak bytes",
            2 * 2**30,
        ),
    ):
        peak = table.median("counts", "cpu", FORWARD, pairs, unit)
        found.append(target(what, f"< {size_of(most)}", peak, size_of, peak is not None and peak < most))
    return found
