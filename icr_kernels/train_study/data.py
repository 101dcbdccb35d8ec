"""What the detectors are trained and measured on: generated scenes, or photographs of one's own at a smaller size."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .. import scenes
from ..paired_data import PairedData, PairedImage, read_coco, write_yolo
from ..scenes import viewer
from ..scenes.drawing import Picture
from ..terminal import progress
from . import NOISE, PHOTOGRAPHS, VALIDATION_SEED, Run

JPEG_QUALITY = 95


class Splits(NamedTuple):
    """A data set in ``folder``, which has a ``data.yaml`` of the first two: ``test`` is what the last weights are
    measured on, ``validation`` what the learning curve is of. Where nothing is chosen by them they may be the same."""

    folder: Path
    train: PairedData
    validation: PairedData
    test: PairedData
    pairs: Mapping[str, tuple[str, ...]]


def prepared(folder: Path, run: Run, validation: int, photographs: Path | None) -> Splits:
    """Writes what a run is trained on. ``validation``: how many scenes are measured on."""
    if run.labels == PHOTOGRAPHS:
        if photographs is None:
            raise ValueError("data: expected the folder of the photographs, got none")
        return _photographs(folder, run, photographs)
    write = functools.partial(scenes.write, folder, size=run.size, zoom=run.zoom)
    measured = write("val", validation, seed=VALIDATION_SEED)
    train = write("train", run.images, seed=run.seed, noise=NOISE[run.labels])
    return Splits(folder, train, measured, measured, scenes.PAIRS)


def _photographs(folder: Path, run: Run, source: Path) -> Splits:
    """From ``annotations_train.json``, ``annotations_val.json`` and ``annotations_test.json``, COCO's JSON with
    ``parent_id``. The seed draws the training images, if not all are wanted."""
    train, validation, test = (
        read_coco(source / f"annotations_{split}.json", source) for split in ("train", "val", "test")
    )
    order = np.random.default_rng(run.seed).permutation(len(train.images))[: run.images]
    train = train._replace(images=[train.images[row] for row in sorted(order)])
    train = _smaller(train, folder, "train", run.size)
    validation = _smaller(validation, folder, "val", run.size)
    test = _smaller(test, folder, "test", run.size)
    scenes.write_yaml(folder, train.names)
    return Splits(folder, train, validation, test, pairs_of(train))


def _smaller(data: PairedData, folder: Path, split: str, size: int) -> PairedData:
    """With the longer side of every image as ``size``: its pixels are those that the detector sees."""
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    found = []
    for image in progress(data.images, f"{split} images"):
        scale = size / max(image.width, image.height)
        width, height = round(image.width * scale), round(image.height * scale)
        picture: Picture = cv2.resize(viewer.read(image.file), (width, height), interpolation=cv2.INTER_AREA)
        file = images / f"{image.file.stem}.jpg"
        cv2.imwrite(str(file), picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        boxes = image.boxes * image.boxes.new_tensor([width / image.width, height / image.height] * 2)
        found.append(PairedImage(file, width, height, boxes, image.labels, image.parent_idx))
    smaller = PairedData(data.names, found)
    write_yolo(smaller, folder / "labels" / split)
    return smaller


def pairs_of(data: PairedData) -> dict[str, tuple[str, ...]]:
    """To each part the names of its wholes, as far as images of the data have such pairs."""
    found: dict[str, set[str]] = {}
    for image in data.images:
        is_paired = image.parent_idx >= 0
        wholes = image.labels[image.parent_idx[is_paired]]
        for part, whole in zip(image.labels[is_paired].tolist(), wholes.tolist(), strict=True):
            found.setdefault(data.names[part], set()).add(data.names[whole])
    return {part: tuple(sorted(wholes)) for part, wholes in sorted(found.items())}
