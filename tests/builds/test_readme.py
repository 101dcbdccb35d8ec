"""Numbers are those of the measurements; two recipes do what they say, and what docs/coming-from.md says to write runs.
(Other snippets: test_snippets.py. Lists and tables of losses: test_losses_page.py.)"""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch

import icr_kernels as icr
from benchmarks import plots, readme, results, tables
from benchmarks.torchvision_without_extension import make_importable
from frameworks import need
from icr_kernels.integrations.distributed import mean_over_ranks
from icr_kernels.variants import LOSS_NAMES, PENALTY_NAMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MATCHING, FRAMEWORKS = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("matching", "frameworks"))
INTRODUCTION, *SECTIONS = (ROOT / "docs" / "coming-from.md").read_text().split("\n## ")


def blocks(text: str) -> list[str]:
    """Its Python."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_readme_is_short_and_names_all_of_them():
    assert len(README.splitlines()) <= 170
    for name in (*LOSS_NAMES, *PENALTY_NAMES):
        assert f"`{name}`" in README


@pytest.mark.parametrize("path", readme.DOCUMENTS, ids=lambda path: path.name)
def test_numbers_are_those_of_the_measurements(path):
    text = path.read_text()
    assert len(readme.BLOCK.findall(text)) == text.count("<!-- measured: ") >= 1
    assert text == readme.filled(text, tables.machines(), path.parent), "run `python -m benchmarks readme`"


def test_every_number_has_a_place():
    used = {match[1] for path in readme.DOCUMENTS for match in readme.BLOCK.findall(path.read_text())}
    assert used == set(readme.BLOCKS)


def test_plots_are_those_of_the_measurements():
    image = pytest.importorskip("PIL.Image")
    stale = [
        str(path.relative_to(results.ROOT))
        for machine in tables.machines()
        for path in machine.folder.glob("*.png")
        if image.open(path).text.get(plots.DIGEST) != plots.digest(machine.rows)
    ]
    assert stale == [], "run `python -m benchmarks plot` on the folder"


def test_matcher_survives_nan():
    """That of docs/matching.md: with NaN in a logit, in a query's box, and in that of a target that has to be matched,
    the other pairs are those that cost least."""
    need("scipy")
    torch.manual_seed(0)
    counts, queries = [2, 0, 6, 4], 6
    logits, pred_boxes = torch.randn(4, queries, 3), 0.1 + 0.5 * torch.rand(4, queries, 4)
    labels, truth = torch.randint(0, 3, (sum(counts),)), 0.1 + 0.5 * torch.rand(sum(counts), 4)
    image_of_truth = torch.arange(4).repeat_interleave(torch.tensor(counts))
    costs = icr.detr_matching_cost(logits, pred_boxes, labels, truth, image_of_truth).split(counts)

    logits[0, 0, 1] = pred_boxes[3, 2, 3] = truth[2, 0] = math.nan  # the first target of image 2
    names = {"icr": icr, "logits": logits, "pred_boxes": pred_boxes, "labels": labels, "truth": truth}
    names |= {"image_of_truth": image_of_truth, "counts": counts}
    (matcher,) = (block for block in blocks(MATCHING) if "linear_sum_assignment" in block)
    exec(matcher, names)

    assert [len(targets) for _, targets in names["indices"]] == counts
    for image, query, target in ((0, 0, None), (3, 2, None), (2, None, 0)):
        pairs = [pair for pair in zip(*names["indices"][image], strict=True) if pair[1] != target]
        assert query not in {pair[0] for pair in pairs}
        rows, columns = ([i for i in range(n) if i != out] for n, out in ((counts[image], target), (queries, query)))
        rest = costs[image][rows][:, columns]
        least = min(
            sum(rest[row, column].item() for row, column in enumerate(chosen))
            for chosen in itertools.permutations(range(len(columns)), len(rows))
        )
        assert sum(costs[image][row, column].item() for column, row in pairs) == pytest.approx(least, abs=1e-5)


def test_uniform_term_of_ones_own_loop():
    """A tenth of the mean of 1 - IoU of the small objects in the foreground, by hand."""
    boxes = torch.tensor([[0.0, 0, 100, 100], [10, 10, 30, 20], [50, 50, 80, 84]])  # the last is just under 32²
    matched, foreground = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([True, True, False, True, False])
    target = boxes[matched]
    pred = target + torch.tensor([0.0, 0, 10, 10])  # ten pixels more on two sides
    names = {
        "icr": icr,
        "mean_over_ranks": mean_over_ranks,
        "boxes": boxes,
        "matched": matched,
        "foreground": foreground,
        "loss": torch.tensor(1.0),
    }
    (recipe,) = (block for block in blocks(FRAMEWORKS) if "is_small" in block)
    exec(recipe, names | {"pred": pred, "target": target}, names)
    sides = [(20, 10), (30, 34)]
    losses = [1 - w * h / ((w + 10) * (h + 10)) for w, h in sides]
    assert names["loss"].item() == pytest.approx(1 + 0.1 * sum(losses) / 2, rel=1e-6)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.partition("\n")[0].split()[0])
def test_what_others_write_runs_here(section):
    """The page's code, and every call of ours in its tables; where a framework is there, beside its own."""
    for framework in ("torchvision", "transformers"):
        if f"from {framework}" in section:
            need(framework)
            make_importable()
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks(INTRODUCTION) + blocks(section):
        exec(block, names)
    calls = re.findall(r"`(-?icr\.[^`]+)`", section)
    assert len(calls) >= 4
    for call in calls:
        eval(call, names)
