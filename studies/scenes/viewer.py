"""Boxes, pairs and predictions, drawn over images: what a data set or a detector looks like."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from .drawing import Colour, Picture

# By class, blue, green, red; well apart in grey too.
COLOURS: tuple[Colour, ...] = ((255, 200, 60), (90, 220, 255), (60, 60, 255), (120, 255, 120), (255, 120, 220))
SHOWN = 0.25  # the score from which on a detection is drawn
SHEET = 1600  # pixels across a contact sheet, at most


class Detections(NamedTuple):
    """Of one image: ``boxes`` (n, 4) xyxy in pixels, ``scores`` (n,), ``labels`` (n,) int64; on the CPU."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def read(file: str | Path) -> Picture:
    """Raises FileNotFoundError if there is no image that can be read."""
    picture = cv2.imread(str(file))
    if picture is None:
        raise FileNotFoundError(f"{file}: expected an image, it is missing or cannot be read")
    return picture


def labelled(picture: Picture, boxes: Tensor, labels: Tensor, parent_idx: Tensor, *, scale: int = 2) -> Picture:
    """The picture, enlarged, with its boxes (n, 4), and a line from each part to the middle of its whole."""
    result = _enlarged(picture, scale)
    corners = boxes.tolist()
    for box, label, parent in zip(corners, labels.tolist(), parent_idx.tolist(), strict=True):
        _box(result, box, label, scale)
        if parent >= 0:
            cv2.line(result, _middle(box, scale), _middle(corners[parent], scale), _colour(label), 1, cv2.LINE_AA)
    return result


def detected(picture: Picture, detections: Detections, *, scale: int = 2, least_score: float = SHOWN) -> Picture:
    """The picture, enlarged, with what was detected with at least this score."""
    result = _enlarged(picture, scale)
    for box, score, label in zip(*(each.tolist() for each in detections), strict=True):
        if score >= least_score:
            _box(result, box, label, scale)
    return result


def titled(picture: Picture, title: str) -> Picture:
    """The picture under a line of text."""
    result = cv2.copyMakeBorder(picture, 24, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cv2.putText(result, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return result


def contact_sheet(pictures: Sequence[Picture], columns: int) -> Picture:
    """Pictures row by row, in cells of the size of the largest, with a white line between them."""
    height, width = (max(picture.shape[axis] for picture in pictures) + 4 for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        y, x = number // columns * height, number % columns * width
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    factor = min(SHEET / sheet.shape[1], 1)
    return cv2.resize(sheet, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else sheet


def save(path: str | Path, picture: Picture) -> None:
    """As PNG or JPEG, by the name."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 85]):
        raise OSError(f"{path}: the picture could not be written")


def _enlarged(picture: Picture, scale: int) -> Picture:
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8)


def _colour(label: int) -> Colour:
    return COLOURS[label % len(COLOURS)]


def _box(picture: Picture, box: Sequence[float], label: int, scale: int) -> None:
    x1, y1, x2, y2 = (round(side * scale) for side in box)
    cv2.rectangle(picture, (x1, y1), (x2, y2), _colour(label), 1)


def _middle(box: Sequence[float], scale: int) -> tuple[int, int]:
    return round((box[0] + box[2]) / 2 * scale), round((box[1] + box[3]) / 2 * scale)
