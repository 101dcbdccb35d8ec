"""Generated images of traffic: vehicles that overlap, plates of a few pixels on them, clutter that looks like plates.

Seeded pictures with exact labels, for trying out a penalty before real data is labelled, for tests, and for
`studies.detection`. ``python -m studies.scenes`` writes a data set and shows it. Needs ``pip install --group studies``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator

from icr_kernels.paired_data import PairedData, PairedImage, write_coco, write_yolo
from icr_kernels.relations import NO_WHOLE
from icr_kernels.terminal import progress

from . import drawing
from .drawing import SUPERSAMPLING, Canvas, Picture, Vehicle

NAMES = ("car", "truck", "plate")
CAR, TRUCK, PLATE = range(3)
PAIRS = {"plate": ("car", "truck")}

# What must be seen of an object for it to be labelled: a share, and of a plate so many pixels.
VISIBLE_VEHICLE, VISIBLE_PLATE = 0.2, 0.6
PLATE_WIDTH, PLATE_HEIGHT = 4.0, 2.0
JPEG_QUALITY = 95


class LabelNoise(NamedTuple):
    """How labels are spoilt; the pictures stay.

    ``jitter``: standard deviation of each centre and, as a factor, of each side, in sides of the box. ``misses``: the
    share of boxes without a label. ``beyond``: the share of plates whose label is moved across a border of the vehicle,
    so that 30 to 70 % of it are outside.
    """

    jitter: float = 0.0
    misses: float = 0.0
    beyond: float = 0.0


class Labels(NamedTuple):
    """``boxes`` (n, 4) float64, xyxy in pixels; ``labels`` (n,) into `NAMES`; ``parents`` (n,): the row of the vehicle,
    or `NO_WHOLE` for all that is no plate on a labelled vehicle."""

    boxes: np.ndarray
    labels: np.ndarray
    parents: np.ndarray


def render(seed: int, number: int, size: int = 320, zoom: float = 1.0) -> tuple[Picture, Labels]:
    """Image ``number`` of a seed: (size, size, 3), blue, green, red, and its exact labels.

    ``zoom``: of the camera. At 1 a car is 10 to 45 % of the image wide and a plate mostly under 16 pixels at a size of
    320; a larger one shows fewer and larger vehicles.
    """
    random = np.random.default_rng((seed, number))
    canvas = Canvas(size)
    horizon = canvas.size * random.uniform(0.2, 0.45)
    drawing.street(canvas, horizon, random)
    drawing.clutter(canvas, horizon, random)
    vehicles = _vehicles(canvas, horizon, zoom, random)
    drawn: list[int] = []
    plates: list[tuple[int, int]] = []
    for row, vehicle in enumerate(vehicles, start=1):
        drawing.vehicle(canvas, vehicle, row, len(plates) + 1, random)
        drawn.append(_seen(canvas.vehicles, row)[1])
        for _ in range(vehicle.plates):
            plates.append((row, _seen(canvas.plates, len(plates) + 1)[1]))
    return drawing.photographed(canvas, random), _labels(canvas, vehicles, drawn, plates)


def _vehicles(canvas: Canvas, horizon: float, zoom: float, random: Generator) -> list[Vehicle]:
    """Vehicles on the ground, the farthest first."""
    camera = random.uniform(0.6, 1.6)  # the height of the camera, in widths of a car
    nearest = (1.05 * canvas.size - horizon) / camera  # a nearer one's plate would be below the image
    smallest, largest = 0.1 * zoom * canvas.size, min(0.45 * zoom * canvas.size, nearest)
    found = []
    for _ in range(round(random.integers(3, 10) / zoom**0.5)):
        w = np.exp(random.uniform(np.log(smallest), np.log(largest)))
        kind = NAMES[int(random.random() < 0.25)]
        w *= 1.25 if kind == "truck" else 1
        bottom = horizon + camera * w
        view = random.random()
        if view < 0.15:
            turned, h, w = 1.0, w * random.uniform(0.6, 0.75) * (1.5 if kind == "truck" else 1), w * 1.8
        else:
            turned = 0.0 if view < 0.5 else random.uniform(0.15, 0.45) * random.choice((-1, 1))
            h = w * (1 - abs(turned)) * random.uniform(0.72, 0.9) * (1.5 if kind == "truck" else 1)
        x = random.uniform(-0.3 * w, canvas.size - 0.7 * w)
        most = 3 if kind == "truck" else 1
        plates = 0 if turned == 1 or random.random() < 0.1 else int(random.integers(1, most + 1))
        found.append(Vehicle(kind, x, bottom, w, h, turned, plates))
    return sorted(found, key=lambda vehicle: vehicle.bottom)


def _seen(numbers: Picture, number: int) -> tuple[tuple[int, int, int, int], int]:
    """Where in a map a number is seen, as x, y, w, h, and at how many pixels."""
    mask = (numbers == number).view(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    return (x, y, w, h), cv2.countNonZero(mask)


def _labels(canvas: Canvas, vehicles: list[Vehicle], drawn: list[int], plates: list[tuple[int, int]]) -> Labels:
    """Boxes around what is seen of each object, of those of which enough is seen."""
    boxes: list[tuple[float, ...]] = []
    labels: list[int] = []
    parents: list[int] = []
    rows = {}

    def add(box: tuple[int, int, int, int], label: int, parent: int) -> None:
        x, y, w, h = box
        boxes.append((x, y, x + w, y + h))
        labels.append(label)
        parents.append(parent)

    for number, (vehicle, pixels) in enumerate(zip(vehicles, drawn, strict=True), start=1):
        box, seen = _seen(canvas.vehicles, number)
        if pixels and seen >= VISIBLE_VEHICLE * pixels:
            rows[number] = len(boxes)
            add(box, NAMES.index(vehicle.kind), NO_WHOLE)
    for number, (of_vehicle, pixels) in enumerate(plates, start=1):
        box, seen = _seen(canvas.plates, number)
        is_large = box[2] >= PLATE_WIDTH * SUPERSAMPLING and box[3] >= PLATE_HEIGHT * SUPERSAMPLING
        if is_large and seen >= VISIBLE_PLATE * pixels:
            add(box, PLATE, rows.get(of_vehicle, NO_WHOLE))
    corners = np.array(boxes, np.float64).reshape(-1, 4) / SUPERSAMPLING
    return Labels(corners, np.array(labels, np.int64), np.array(parents, np.int64))


def spoilt(labels: Labels, noise: LabelNoise, size: int, random: Generator) -> Labels:
    """The labels with noise, clipped to the image."""
    boxes = labels.boxes.copy()
    moved = (labels.parents >= 0) & (random.random(len(boxes)) < noise.beyond)
    for row in np.flatnonzero(moved):
        boxes[row] = _beyond(boxes[row], boxes[labels.parents[row]], random)
    sides = boxes[:, 2:] - boxes[:, :2]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + noise.jitter * sides * random.standard_normal(sides.shape)
    sides = sides * np.exp(noise.jitter * random.standard_normal(sides.shape))
    boxes = np.concatenate((centers - sides / 2, centers + sides / 2), 1).clip(0, size)
    kept = (random.random(len(boxes)) >= noise.misses) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    row_of = np.where(kept, np.cumsum(kept) - 1, NO_WHOLE)
    parents = labels.parents.copy()
    parents[parents >= 0] = row_of[parents[parents >= 0]]
    return Labels(boxes[kept], labels.labels[kept], parents[kept])


def _beyond(plate: np.ndarray, vehicle: np.ndarray, random: Generator) -> np.ndarray:
    """The plate, moved along one axis until a random share of it is outside the vehicle."""
    axis, is_far = random.integers(2), random.integers(2)
    side = plate[axis + 2] - plate[axis]
    share = random.uniform(0.3, 0.7)
    start = vehicle[axis + 2] - (1 - share) * side if is_far else vehicle[axis] - share * side
    moved = plate.copy()
    moved[axis], moved[axis + 2] = start, start + side
    return moved


def write(
    folder: str | Path,
    split: str,
    count: int,
    *,
    size: int = 320,
    zoom: float = 1.0,
    seed: int = 0,
    noise: LabelNoise | None = None,
) -> PairedData:
    """A data set of ``count`` square images with sides of ``size`` pixels, in ``folder``; ``zoom`` as of `render`.

    Writes ``images/SPLIT/*.jpg``, ``labels/SPLIT/*.txt`` (YOLO), ``annotations/SPLIT.json`` (COCO, with ``parent_id``)
    and ``data.yaml``, which names the splits train and val. The same seed gives the same files, whatever the noise the
    same pictures.
    """
    folder = Path(folder)
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    found = []
    for number in progress(range(count), f"{split} images"):
        picture, labels = render(seed, number, size, zoom)
        if noise is not None:
            labels = spoilt(labels, noise, size, np.random.default_rng((seed, number, 1)))
        file = images / f"{number:06}.jpg"
        cv2.imwrite(str(file), picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        boxes, classes, parents = labels
        found.append(
            PairedImage(
                file,
                size,
                size,
                torch.from_numpy(boxes).float(),
                torch.from_numpy(classes),
                torch.from_numpy(parents),
            )
        )
    data = PairedData(NAMES, found)
    write_yolo(data, folder / "labels" / split)
    (folder / "annotations").mkdir(exist_ok=True)
    write_coco(data, folder / "annotations" / f"{split}.json")
    write_yaml(folder, NAMES)
    return data


def write_yaml(folder: Path, names: Sequence[str]) -> None:
    """What Ultralytics asks for of a data set with the splits train and val."""
    # In quotes, because YAML reads `no` as a truth value and ends a name at a #; its strings are those of JSON.
    classes = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(names))
    (folder / "data.yaml").write_text(
        f"path: {json.dumps(str(folder.resolve()))}\ntrain: images/train\nval: images/val\nnames:\n{classes}"
    )
