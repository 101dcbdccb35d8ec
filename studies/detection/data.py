"""What the detectors are trained and measured on: generated scenes, or photographs of one's own at another size."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from icr_kernels.paired_data import PairedData, PairedImage, read_coco, write_yolo
from icr_kernels.terminal import progress
from studies import scenes
from studies.scenes import viewer
from studies.scenes.drawing import Picture

from .protocol import NOISE, PHOTOGRAPHS, VALIDATION_SEED, Run

JPEG_QUALITY = 95


class Photographs(NamedTuple):
    """A data set of one's own, of which all splits have the same classes."""

    train: PairedData
    validation: PairedData
    test: PairedData
    pairs: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, folder: Path) -> "Photographs":
        """From ``annotations_train.json``, ``annotations_val.json`` and ``annotations_test.json``, COCO's format with
        ``parent_id``. ValueError or OSError: what is wrong with them."""
        files = [folder / f"annotations_{split}.json" for split in ("train", "val", "test")]
        train, validation, test = (read_coco(file, folder) for file in files)
        for file, data in zip(files, (train, validation, test), strict=True):
            if not data.images:
                raise ValueError(f"{file}: expected at least one image, got none")
            if data.names != train.names:
                raise ValueError(
                    f"{file}: expected the classes {', '.join(train.names)}, as {files[0].name} has them, got "
                    f"{', '.join(data.names)}"
                )
            for image in data.images:
                low, high = image.boxes[:, :2], image.boxes[:, 2:]
                bound = image.boxes.new_tensor([image.width, image.height])
                if not ((low >= 0) & (low < high) & (high <= bound)).all():
                    raise ValueError(f"{file}: expected boxes with an area, within {image.file.name}, got another")
        pairs = pairs_of(train)
        if not pairs:
            raise ValueError(f"{files[0]}: expected annotations with the parent_id of another, got none")
        return cls(train, validation, test, pairs)


class Splits(NamedTuple):
    """A data set in ``folder``, which has a ``data.yaml`` of the first two: ``test`` is what the last weights are
    measured on, ``validation`` what the learning curve is of. Where nothing is chosen by them they may be the same."""

    folder: Path
    train: PairedData
    validation: PairedData
    test: PairedData
    pairs: Mapping[str, tuple[str, ...]]


def prepared(folder: Path, run: Run, validation: int, source: Path | None) -> Splits:
    """Writes what a run is trained on. ``validation``: how many scenes are measured on; ``source``: the folder of
    photographs."""
    if run.labels == PHOTOGRAPHS:
        assert source is not None
        return _photographs(folder, run, Photographs.read(source))
    write = functools.partial(scenes.write, folder, size=run.size, zoom=run.zoom)
    measured = write("val", validation, seed=VALIDATION_SEED)
    train = write("train", run.images, seed=run.seed, noise=NOISE[run.labels])
    return Splits(folder, train, measured, measured, scenes.PAIRS)


def _photographs(folder: Path, run: Run, source: Photographs) -> Splits:
    """The seed draws the training images, if not all are wanted."""
    order = np.random.default_rng(run.seed).permutation(len(source.train.images))[: run.images]
    drawn = source.train._replace(images=[source.train.images[row] for row in sorted(order)])
    train = _resized(drawn, folder, "train", run.size)
    validation = _resized(source.validation, folder, "val", run.size)
    test = _resized(source.test, folder, "test", run.size)
    scenes.write_yaml(folder, train.names)
    return Splits(folder, train, validation, test, source.pairs)


def _resized(data: PairedData, folder: Path, split: str, size: int) -> PairedData:
    """With the longer side of every image as ``size``: its pixels are those that the detector sees."""
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    found = []
    for image in progress(data.images, f"{split} images"):
        scale = size / max(image.width, image.height)
        width, height = round(image.width * scale), round(image.height * scale)
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        picture: Picture = cv2.resize(viewer.read(image.file), (width, height), interpolation=interpolation)
        file = images / f"{image.file.stem}.jpg"
        cv2.imwrite(str(file), picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        boxes = image.boxes * image.boxes.new_tensor([width / image.width, height / image.height] * 2)
        found.append(PairedImage(file, width, height, boxes, image.labels, image.parent_idx))
    resized = PairedData(data.names, found)
    write_yolo(resized, folder / "labels" / split)
    return resized


def pairs_of(data: PairedData) -> dict[str, tuple[str, ...]]:
    """To each part the names of its wholes, as far as images of the data have such pairs."""
    found: dict[str, set[str]] = {}
    for image in data.images:
        is_paired = image.parent_idx >= 0
        wholes = image.labels[image.parent_idx[is_paired]]
        for part, whole in zip(image.labels[is_paired].tolist(), wholes.tolist(), strict=True):
            found.setdefault(data.names[part], set()).add(data.names[whole])
    return {part: tuple(sorted(wholes)) for part, wholes in sorted(found.items())}
