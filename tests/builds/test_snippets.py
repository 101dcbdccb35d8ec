"""What README and docs say to write runs, and what they say to type or to look at is there. (docs/coming-from.md, which
compares with others: test_readme.py.)"""

import contextlib
import functools
import importlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

import icr_kernels as icr
from benchmarks.torchvision_without_extension import make_importable
from frameworks import need
from ultralytics_training import environment

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {0: "plate", 1: "car", 2: "truck", 3: "bus", 4: "wheel"}
CHOICES = ("coming-from.md",)  # tested elsewhere


class Snippet(NamedTuple):
    """Blocks of a page that run one after the other, and what they are written for."""

    page: Path
    framework: str | None
    blocks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.framework or 'itself'}"


def framework_of(block: str) -> str | None:
    for framework in ("rfdetr", "transformers", "ultralytics", "detr", "torchvision", "mmdet"):
        if re.search(rf"\b(from {framework} import|icr_kernels\.integrations\.{framework}\b)", block):
            return framework
    return None


def snippets() -> list[Snippet]:
    found = []
    for page in PAGES:
        if page.name in CHOICES:
            continue
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
        own = tuple(block for block in blocks if framework_of(block) is None)
        found += [Snippet(page, None, own)] if own else []
        found += [Snippet(page, framework, (block,)) for block in blocks if (framework := framework_of(block))]
    return found


def batch() -> dict:
    """Four images, and what a training step has of them, by the names of the pages."""
    torch.manual_seed(0)
    counts = [2, 0, 6, 4]
    image = torch.arange(4).repeat_interleave(torch.tensor(counts))
    corners = 0.4 * torch.rand(12, 2)
    truth = torch.cat((corners, corners + 0.1 + 0.4 * torch.rand(12, 2)), 1)
    matched = torch.randint(12, (20,))
    pred = (truth[matched] + 0.02 * torch.randn(20, 4)).requires_grad_()
    labels = torch.tensor([1, 0] * 6)
    return {
        "torch": torch,
        "icr": icr,
        "counts": counts,
        "names": NAMES,
        "labels": labels,
        "truth": truth,
        "boxes": truth,
        "image": image,
        "image_of_truth": image,
        "points": torch.rand(40, 4).sort(-1).values,
        "image_of_point": torch.arange(4).repeat_interleave(10),
        "logits": torch.randn(4, 6, 5),
        "pred_boxes": 0.1 + 0.5 * torch.rand(4, 6, 4),
        "centers": torch.rand(6, 2),
        "matched": matched,
        "pred": pred,
        "target": truth[matched],
        "foreground": torch.rand(20) < 0.5,
        "anchor_index": torch.full((20,), -1),
        "car_of": torch.zeros(20, dtype=torch.int64),
        "cars": truth[:3],
        "a": truth,
        "b": truth.flip(0),
        "parts": truth,
        "wholes": truth,
        "loss": torch.tensor(1.0),
        "generalized_box_iou": functools.partial(icr.pairwise_iou, kind="giou"),
    } | loop(truth)


def loop(truth: torch.Tensor) -> dict:
    """A loader of one batch of 2 x 5 points, and a model."""
    pred = torch.rand(2, 5, 4).sort(-1).values.requires_grad_()
    targets = SimpleNamespace(cars=truth[:3], count=torch.tensor(4.0))
    assigned = truth[:10].view(2, 5, 4), torch.rand(2, 5) < 0.5, torch.tensor([[0, 1, -1, 2, 0]] * 2)
    return {
        "loader": [(None, targets)],
        "model": lambda images: pred,
        "assign": lambda pred, targets: assigned,
    }


def transformers_model() -> object:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1], layer_type="basic", out_features=["stage3"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1, num_queries=4, id2label=NAMES
    )
    return transformers.DetrForObjectDetection(config)


def ultralytics_models(patch: pytest.MonkeyPatch, folder: Path) -> dict:
    """YOLO and RTDETR that make a model of the architecture, and notice that it would be trained."""
    for name, value in environment(folder / "settings").items():
        patch.setenv(name, value)
    ultralytics = importlib.import_module("ultralytics")
    trained = []

    def maker(kind: type, small: str):
        def make(name: str):
            model = kind(small)
            patch.setattr(model, "train", lambda **settings: trained.append((name, settings)))
            return model

        return make

    made = {"YOLO": maker(ultralytics.YOLO, "yolo11n.yaml"), "RTDETR": maker(ultralytics.RTDETR, "yolov8n-rtdetr.yaml")}
    for name, make in made.items():
        patch.setattr(ultralytics, name, make)
    loss = importlib.import_module("ultralytics.utils.loss")
    patch.setattr(loss, "E2EDetectLoss", getattr(loss, "E2EDetectLoss", None), raising=False)
    patch.setattr(sys, "argv", ["icr.py", "plates.yaml"])
    return {**made, "model": made["YOLO"]("yolo11n.pt"), "trained": trained}


def detr_criterion() -> torch.nn.Module:
    """With the interface of those repositories."""

    class SetCriterion(torch.nn.Module):
        losses = ("boxes",)

        def loss_boxes(self, outputs, targets, indices, num_boxes):
            return {"loss_bbox": torch.zeros(()), "loss_giou": torch.zeros(())}

        def forward(self, outputs, targets):
            return {}

    return SetCriterion()


class RFDETR:
    """The members of rfdetr that the page names, as test_rfdetr.py uses those of the package."""

    def __init__(self) -> None:
        self.fitted: list = []
        criterion = detr_criterion()

        class RFDETRNano:
            model_config = "model"

            def __init__(self, num_classes: int) -> None:
                assert num_classes == 2

            def get_train_config(self, dataset_dir: str, epochs: int) -> str:
                return f"{dataset_dir} {epochs}"

        self.RFDETRNano = RFDETRNano
        self.RFDETRModelModule = lambda model, config: SimpleNamespace(criterion=criterion)
        self.RFDETRDataModule = lambda model, config: SimpleNamespace(setup=str, class_names=["car", "plate"])
        self.build_trainer = lambda config, model: SimpleNamespace(fit=lambda *both: self.fitted.append(both))


def ran(snippet: Snippet, given: dict) -> dict:
    for block in snippet.blocks:
        exec(compile(block, f"{snippet.page.name}, {snippet}", "exec"), given)
    return given


def paired_files(folder: Path) -> None:
    from PIL import Image

    for name in ("images/train/1.png", "UFPR-ALPR/training/1.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (100, 50)).save(folder / name)
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/1.txt").write_text("0 0.5 0.5 0.6 0.8\n1 0.5 0.6 0.1 0.1\n")
    lines = ["position_vehicle: 20 10 50 40", "\ttype: car", "plate: ABC-1234", "corners: 30,40 45,41 44,46 29,45"]
    (folder / "UFPR-ALPR/training/1.txt").write_text("\n".join(lines) + "\n")
    image = {"id": 1, "file_name": "images/train/1.png", "width": 100, "height": 50}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20]}
    document = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "car"}]}
    (folder / "plates.json").write_text(json.dumps(document))


# The stand-ins for criteria have other losses than those that the term knows.
@pytest.mark.filterwarnings("ignore:icr_kernels. the box losses of SetCriterion")
@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_snippet_runs(snippet, tmp_path, monkeypatch):
    given, package = batch(), {"mmdet": "mmengine", "detr": None, "rfdetr": None}
    needed = package.get(snippet.framework, snippet.framework)
    if needed is not None:
        need(needed)
        make_importable()
    if any("scipy" in block for block in snippet.blocks):
        need("scipy")
    if snippet.page.stem == "paired-data":
        need("PIL")
        paired_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    match snippet.framework:
        case "transformers":
            given["model"] = transformers_model()
        case "torchvision":
            detection = importlib.import_module("torchvision.models.detection")
            weights = {"weights": None, "weights_backbone": None}
            given["model"] = detection.fcos_resnet50_fpn(**weights, num_classes=3)
        case "ultralytics":
            given |= ultralytics_models(monkeypatch, tmp_path)
        case "detr":
            given["YAMLConfig"] = lambda path: SimpleNamespace(criterion=detr_criterion())
        case "rfdetr":
            from icr_kernels.integrations.detr import enable_icr

            monkeypatch.setitem(sys.modules, "rfdetr", RFDETR())
            given["enable_icr"] = enable_icr

    given = ran(snippet, given)

    if "handle" in given:
        assert given["handle"].statistics.steps == 0
        given["handle"].disable()
    if snippet.page.stem == "your-own-criterion":
        losses, best = given["losses"], given["best"]
        assert losses[-1] < losses[0] / 5 and best.values.min() > 0.4 and given["is_right"].all()
        assert sum(given["same_terms"]).item() == pytest.approx(sum(given["criterion"](*given["given"])).item())
    text = "\n".join(snippet.blocks)
    match snippet.framework:
        case "ultralytics":
            assert len(given["trained"]) == text.count("model.train(data=") + text.count("model.train(\n")
        case "rfdetr":
            assert sys.modules["rfdetr"].fitted == [(given["module"], given["data"])]
        case "mmdet":
            for name in given["custom_imports"]["imports"]:
                importlib.import_module(name)
            registry = importlib.import_module("mmengine.registry")
            assert registry.MODELS.build(given["loss_bbox"]).loss_weight == 2
            assert [registry.HOOKS.build(each) for each in given["custom_hooks"]]


def test_example_of_the_readme():
    """Eight lines, with a loss of which both terms count, and a gradient."""
    block = next(each for each in snippets() if each.page.name == "README.md").blocks[0]
    assert len(block.splitlines()) == 8
    given: dict = {}
    exec(block, given)
    pred, loss = given["pred"], given["loss"].item()
    box_loss = icr.box_iou_loss(pred, given["plates"]).item()
    assert 0 < box_loss < loss and pred.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in CHOICES], ids=lambda page: page.stem)
def test_calls_in_the_text_run(page):
    calls = {call for call in re.findall(r"`(icr\.\w+\([^`]*\))`", page.read_text()) if "..." not in call}
    for call in calls:
        eval(call, batch())


# What is typed


def code(page: Path) -> list[str]:
    """What a page shows as code, but Python."""
    text = re.sub(r"^```python\n.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    return [line.partition("  #")[0] for block in fenced for line in block.splitlines()] + [
        " ".join(span.split()) for span in spans
    ]


@functools.cache
def said_about(module: str, *commands: str) -> str | None:
    """What a program says of itself, or of one of its commands; None: it has no such."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        patch.setattr(sys, "argv", [module, *commands, "--help"])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as status:
            return output.getvalue() if status.code in (0, None) else None
    return None


def invocations() -> dict[str, tuple[str, list[str]]]:
    """Of every `python -m` of this repository the module and its arguments, up to what the shell takes."""
    found = {}
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for line in code(page):
            command = re.search(r"python[\d.]* -m ((?:icr_kernels|benchmarks|studies)[\w.]*)(.*)", line)
            if command:
                arguments = []
                for word in shlex.split(command[2].partition("#")[0]):
                    if word in ("|", "&&", ";"):
                        break
                    arguments.append(word)
                found[f"{page.stem}: {command[0].strip()}"] = command[1], arguments
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of runpy, that a module is imported already
@pytest.mark.parametrize(("module", "arguments"), invocations().values(), ids=list(invocations()))
def test_command_is_there(module, arguments):
    if module == "benchmarks.adapters":
        need("ultralytics")
    if module.startswith("studies"):
        for package in ("cv2", "matplotlib"):
            need(package)
    said = said_about(module)
    assert said is not None, f"python -m {module} --help"
    own = re.search(r"^positional arguments:\n|^commands:\n", said, re.MULTILINE)
    if arguments and own and re.search(rf"^ +{re.escape(arguments[0])}\b +\S", said, re.MULTILINE):
        said = said_about(module, arguments[0])
        assert said is not None, f"python -m {module} {arguments[0]} --help"
    elif arguments and "COMMAND" in said:
        pytest.fail(f"python -m {module} has no {arguments[0]}")
    options = {each for each in arguments if each.startswith("--")}
    assert options - set(re.findall(r"--[\w-]+", said)) == set()


def test_commands_start_with_the_environment_that_is_set_for_them():
    """Where the wheel is to come before the checkout, studies and benchmarks still have to be found in it."""
    (block,) = re.findall(
        r"^```\n([^`]*^export PYTHONPATH=[^`]*)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    (export,) = re.findall(r"^export .*", block, re.MULTILINE)
    commands = re.findall(r"python3 (-m (?:studies|benchmarks)[\w.]*(?: run)?)", block)
    assert commands
    for command in commands:
        line = f"{export}\n{shlex.quote(sys.executable)} {command} --help"
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_targets_of_make_are_there():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for line in code(page):
            for target in re.findall(r"(?:^|&& |`)make (\w+)", line):
                assert target in targets, f"{page.name}: make {target}"


def test_files_are_there():
    """Those of this repository that pages name as code."""
    folders = "csrc|triton_kernels|icr_kernels|benchmarks|tests|studies|docs"
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for span in code(page):
            for name in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./-]+", span):
                if not re.search(r"[A-Z]{3}", name):  # MACHINE stands for any
                    assert (ROOT / name).exists(), f"{page.name}: {name}"
