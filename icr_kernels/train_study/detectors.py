"""The detectors of the study, from random weights, through this package's adapters: YOLO of Ultralytics and a small
RT-DETR of transformers. Everything but the penalty is the same in every arm."""

import contextlib
import importlib
import io
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..integrations.handle import Statistics
from ..paired_data import PairedData, PairedImage
from ..scenes import NAMES, PAIRS, viewer
from ..scenes.drawing import Picture
from ..scenes.viewer import Detections
from . import ARMS, CHECKS, Arm, Run

# Ultralytics' settings where they are not its own. A mosaic would halve plates that have few pixels as they are; the
# choice of the optimizer is not left to the version.
YOLO = {"optimizer": "AdamW", "lr0": 1.5e-3, "warmup_epochs": 1, "mosaic": 0.0, "scale": 0.25}
IOU_GAIN = 7.5  # its own
DETECTIONS = 100  # an image
LEAST_SCORE = 0.001
NMS_IOU = 0.7


class Training(NamedTuple):
    """What a detector is trained with: ``folder`` has the data set with its ``data.yaml``; ``checked`` is called with
    the epoch (from 1 on) and the detections on the validation images, on the way and after the last epoch."""

    run: Run
    device: str
    folder: Path
    train: PairedData
    validation: PairedData
    checked: Callable[[int, list[Detections]], None]

    @property
    def arm(self) -> Arm:
        return ARMS[self.run.arm]

    @property
    def penalty(self) -> dict[str, Any]:
        """As `enable_icr` takes it."""
        return {"weight": self.run.weight, "penalty": self.arm.penalty, "relative": self.arm.relative}

    def is_checked(self, epoch: int) -> bool:
        return epoch == self.run.epochs or epoch % max(self.run.epochs // CHECKS, 1) == 0


def pictures(data: PairedData) -> list[Picture]:
    """(height, width, 3), blue, green, red."""
    return [viewer.read(image.file) for image in data.images]


def train(training: Training) -> Statistics:
    """Trains, and returns what the penalty saw. The same seed on the same device gives the same weights."""
    return (_train_rtdetr if training.run.detector == "rtdetr" else _train_yolo)(training)


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


def _train_yolo(training: Training) -> Statistics:
    from ..integrations.ultralytics import enable_icr

    module = ultralytics(training.folder / "settings")
    images = pictures(training.validation)
    model = module.YOLO(f"{training.run.detector}.yaml")
    handle = enable_icr(model, PAIRS, **training.penalty)

    def check(trainer: Any) -> None:
        epoch = trainer.epoch + 1
        if training.is_checked(epoch):
            # Neither the network nor the random numbers of the training may notice.
            with torch.random.fork_rng(enabled=True):
                training.checked(epoch, _yolo_detections(trainer.ema.ema, images, training))

    def faster(trainer: Any) -> None:
        if training.device == "cpu":
            trainer.model.to(memory_format=torch.channels_last)

    model.add_callback("on_train_start", faster)
    model.add_callback("on_train_epoch_end", check)
    with contextlib.redirect_stdout(io.StringIO()):
        model.train(
            data=str(training.folder / "data.yaml"),
            epochs=training.run.epochs,
            imgsz=training.run.size,
            batch=training.run.batch,
            seed=training.run.seed,
            device=training.device,
            pretrained=False,
            amp=False,
            val=False,
            workers=0,
            cache="ram",
            plots=False,
            save=False,
            box=IOU_GAIN * training.arm.gain,
            **YOLO,
            nbs=training.run.batch,
            project=str(training.folder / "runs"),
            name="run",
            exist_ok=True,
            verbose=False,
        )
    return handle.statistics


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


def rtdetr(gain: float = 1.0) -> Any:
    """RT-DETR with a ResNet of half the width of a ResNet-18, one block a stage, and three decoder layers."""
    transformers: Any = importlib.import_module("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    names = dict(enumerate(NAMES))
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        id2label=names,
        label2id={name: label for label, name in names.items()},
        weight_loss_giou=2.0 * gain,
        **RTDETR,
    )
    return transformers.RTDetrForObjectDetection(config)


def _train_rtdetr(training: Training) -> Statistics:
    from ..integrations.transformers import enable_icr

    torch.manual_seed(training.run.seed)
    model = rtdetr(training.arm.gain).to(training.device)
    handle = enable_icr(model, PAIRS, **training.penalty)
    images = _tensors(training.train)
    validation = _tensors(training.validation)
    count = len(training.train.images)
    steps = training.run.epochs * math.ceil(count / training.run.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARM_UP, anneal_strategy="cos"
    )
    generator = torch.Generator().manual_seed(training.run.seed)
    for epoch in range(1, training.run.epochs + 1):
        model.train()
        for rows in torch.randperm(count, generator=generator).split(training.run.batch):
            pixels, labels = _augmented(images[rows], [training.train.images[row] for row in rows], generator)
            labels = [{name: value.to(training.device) for name, value in each.items()} for each in labels]
            optimizer.zero_grad()
            model(pixel_values=pixels.to(training.device), labels=labels).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
        if training.is_checked(epoch):
            training.checked(epoch, _rtdetr_detections(model, validation, training))
    return handle.statistics


def _tensors(data: PairedData) -> Tensor:
    """(n, 3, height, width), from 0 to 1."""
    return torch.stack([torch.from_numpy(each).permute(2, 0, 1) for each in pictures(data)]).float() / 255


def _augmented(
    pixels: Tensor, images: Sequence[PairedImage], generator: torch.Generator
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Half of the images mirrored, all brighter or darker; boxes as cxcywh, normalised, with their pairs."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    factor = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1, generator=generator)
    pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels) * factor
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
