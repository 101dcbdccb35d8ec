"""Detections against labels: COCO's numbers by pycocotools, and whether parts lie in wholes."""

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from icr_kernels import pairwise_max
from icr_kernels.paired_data import PairedData
from studies.scenes.viewer import Detections

# From this score on a part counts as detected, where no curve over all scores is taken.
DETECTED = 0.25
# A part that has less than this share of its area in every whole is outside of them.
INSIDE = 0.5
# Squared sides in pixels, as COCO has them for "small"; and half of that.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "tiny": (0.0, 16.0**2)}
IOU_50 = 0


def evaluated(
    data: PairedData, pairs: Mapping[str, Sequence[str]], detections: Sequence[Detections]
) -> dict[str, float | str]:
    """COCO's average precisions and recalls (of 100 detections per image): of all classes, of the parts and of the
    others, each the mean over classes; and of each class AP and AP50, as JSON. NaN where there is nothing to find. Of
    the parts that are detected: the share outside every labelled whole of their image, and the mean share of their area
    that is inside one."""
    numbers = _coco(data, detections)
    precision, recall = numbers["precision"], numbers["recall"]

    def mean(values: np.ndarray) -> float:
        found = values[values > -1]
        return round(float(found.mean()), 5) if found.size else float("nan")

    areas = {name: position for position, name in enumerate(AREAS)}
    parts = [label for label, name in enumerate(data.names) if name in pairs]
    wholes = [label for label, name in enumerate(data.names) if name not in pairs]
    result: dict[str, float | str] = {
        "ap": mean(precision[:, :, :, areas["all"], -1]),
        "ap50": mean(precision[IOU_50, :, :, areas["all"], -1]),
        "ap_small": mean(precision[:, :, :, areas["small"], -1]),
        "ap_tiny": mean(precision[:, :, :, areas["tiny"], -1]),
        "ar_small": mean(recall[:, :, areas["small"], -1]),
    }
    for name, labels in {"part": parts, "whole": wholes}.items():
        result[f"{name}_ap"] = mean(precision[:, :, labels, areas["all"], -1])
        result[f"{name}_ap50"] = mean(precision[IOU_50, :, labels, areas["all"], -1])
    of_class = {
        name: [mean(precision[:, :, label, areas["all"], -1]), mean(precision[IOU_50, :, label, areas["all"], -1])]
        for label, name in enumerate(data.names)
    }
    result["classes"] = json.dumps(
        {name: [None if math.isnan(value) else value for value in values] for name, values in of_class.items()}
    )
    is_part = torch.zeros(len(data.names), dtype=torch.bool)
    is_part[parts] = True
    inside = torch.cat(
        [
            _inside(image.boxes[~is_part[image.labels]], each, is_part)
            for image, each in zip(data.images, detections, strict=True)
        ]
    ).double()
    result["parts_detected"] = len(inside)
    result["parts_outside"] = round((inside < INSIDE).double().mean().item(), 5)
    result["parts_inside_mean"] = round(inside.mean().item(), 5)
    return result


def _inside(wholes: Tensor, found: Detections, is_part: Tensor) -> Tensor:
    """The largest share of each detected part that is in one whole."""
    parts = found.boxes[is_part[found.labels] & (found.scores >= DETECTED)].float()
    if not len(parts) or not len(wholes):
        return torch.zeros(len(parts))
    return pairwise_max(parts, wholes, kind="containment").values


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
            "categories": [{"id": label, "name": name} for label, name in enumerate(data.names)],
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
