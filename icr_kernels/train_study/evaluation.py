"""Detections against labels: COCO's numbers by pycocotools, and whether plates lie in vehicles."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from .. import pairwise_max
from ..paired_data import PairedData
from ..scenes import NAMES, PLATE
from ..scenes.viewer import Detections

# From this score on a plate counts as detected, where no curve over all scores is taken.
DETECTED = 0.25
# A plate that has less than this share of its area in every vehicle is outside of them.
INSIDE = 0.5
# Squared sides in pixels, as COCO has them for "small"; and half of that.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "tiny": (0.0, 16.0**2)}
IOU_50 = 0


def evaluated(data: PairedData, detections: Sequence[Detections]) -> dict[str, float]:
    """COCO's average precisions and recalls, in all and of each class (of 100 detections an image); NaN where there is
    nothing to find. Of the plates that are detected: the share outside every labelled vehicle of their image, and the
    mean share of their area that is inside one."""
    numbers = _coco(data, detections)
    precision, recall = numbers["precision"], numbers["recall"]

    def mean(values: np.ndarray) -> float:
        found = values[values > -1]
        return float(found.mean()) if found.size else float("nan")

    areas = {name: position for position, name in enumerate(AREAS)}
    result = {
        "ap": mean(precision[:, :, :, areas["all"], -1]),
        "ap50": mean(precision[IOU_50, :, :, areas["all"], -1]),
        "ap_small": mean(precision[:, :, :, areas["small"], -1]),
        "ap_tiny": mean(precision[:, :, :, areas["tiny"], -1]),
        "ar_small": mean(recall[:, :, areas["small"], -1]),
    }
    for label, name in enumerate(NAMES):
        result[f"{name}_ap"] = mean(precision[:, :, label, areas["all"], -1])
        result[f"{name}_ap50"] = mean(precision[IOU_50, :, label, areas["all"], -1])
    inside = torch.cat(
        [_inside(image.boxes[image.labels != PLATE], each) for image, each in zip(data.images, detections, strict=True)]
    )
    result["plates_detected"] = float(len(inside))
    result["plates_outside"] = float((inside < INSIDE).double().mean()) if len(inside) else float("nan")
    result["plates_inside_mean"] = float(inside.double().mean()) if len(inside) else float("nan")
    return result


def _inside(vehicles: Tensor, found: Detections) -> Tensor:
    """The largest share of each detected plate that is in one vehicle."""
    plates = found.boxes[(found.labels == PLATE) & (found.scores >= DETECTED)].float()
    if not len(plates) or not len(vehicles):
        return torch.zeros(len(plates))
    return pairwise_max(plates, vehicles, kind="containment").values


def _coco(data: PairedData, detections: Sequence[Detections]) -> dict[str, np.ndarray]:
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (image, each) in enumerate(zip(data.images, detections, strict=True)):
        for (x1, y1, x2, y2), label in zip(image.boxes.tolist(), image.labels.tolist(), strict=True):
            area = (x2 - x1) * (y2 - y1)
            box = [x1, y1, x2 - x1, y2 - y1]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
        for (x1, y1, x2, y2), score, label in zip(*(values.tolist() for values in each), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(len(data.images))],
            "annotations": truth,
            "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES)],
        }
        coco.createIndex()
        results = COCO()
        results.dataset = {**coco.dataset, "annotations": []}
        results.createIndex()
        if found:
            results = coco.loadRes(found)
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.areaRng = list(AREAS.values())
        evaluation.params.areaRngLbl = list(AREAS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval
