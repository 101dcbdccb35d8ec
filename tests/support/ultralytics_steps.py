"""Networks of Ultralytics with random weights, a scene for them, a training step, and what their assigner gives."""

import types

import pytest
import torch

from icr_kernels.integrations.ultralytics import enable_icr
from icr_kernels.integrations.ultralytics.start import EVENT
from ultralytics_training import (
    CAR,
    NAMES,
    PLATE,
    SIZE,
    TRUCK,
    small_detr,
)

PAIRS = {"plate": ("car", "truck")}
BOX_GAIN = 7.5

FAMILIES = ("yolo11n", "yolo12n", "yolo26n", "yolov10n", "yolov8n-rtdetr")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_yolo = pytest.mark.parametrize("family", FAMILIES[:-1])

# Image, class, box in pixels: two plates in their wholes and one of nobody; and fewer boxes, which are padded.
SCENE = [
    (0, CAR, (0, 4, 38, 40)),
    (0, PLATE, (14, 22, 38, 38)),
    (0, PLATE, (42, 4, 62, 22)),
    (0, TRUCK, (30, 40, 64, 64)),
    (1, TRUCK, (8, 8, 60, 60)),
    (1, PLATE, (20, 42, 44, 60)),
]
WHOLE_OF = {1: 0, 5: 4}


def network(family: str):
    """As the trainer makes it."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    if family == "yolov8n-rtdetr":
        model = tasks.RTDETRDetectionModel(small_detr(), nc=len(NAMES), verbose=False)
        # Boxes that are large enough to reach out of their wholes, at every output.
        model.model[-1].enc_bbox_head.layers[-1].bias.data[2:] = 2.5
    else:
        try:
            model = tasks.DetectionModel(f"{family}.yaml", nc=len(NAMES), verbose=False)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        # Boxes of a few cells, as for the smaller objects here; untrained ones reach over the whole image.
        distances = model.model[-1].reg_max
        for convolutions in ("cv2", "one2one_cv2"):
            for level in getattr(model.model[-1], convolutions, None) or ():
                if distances > 1:
                    level[-1].bias.data[:] = -0.35 * torch.arange(distances).repeat(4)
    model.args, model.names, model.nc = get_cfg(), NAMES, len(NAMES)
    return model.train()


def begin(yolo, *models, **options):
    """Switches the penalty on, and does what a trainer does then."""
    enable = options.pop("enable", None)
    icr_handle = enable(yolo, **options) if enable else enable_icr(yolo, options.pop("pairs", PAIRS), **options)
    average = types.SimpleNamespace(ema=models[1]) if len(models) > 1 else None
    arguments = types.SimpleNamespace(single_cls=False, imgsz=SIZE)
    yolo.trainer = types.SimpleNamespace(model=models[0], ema=average, args=arguments, loss_names=())
    for callback in yolo.callbacks[EVENT]:
        callback(yolo.trainer)
    return icr_handle


def batch(scene=SCENE, images: int = 2) -> dict:
    boxes = torch.tensor([box for _, _, box in scene]).view(-1, 4) / SIZE
    return {
        "img": torch.rand(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
        "cls": torch.tensor([[float(label)] for _, label, _ in scene]).view(-1, 1),
        "bboxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
        "batch_idx": torch.tensor([float(image) for image, _, _ in scene]),
    }


def random_batch(seed: int, count: int) -> dict:
    """Two images of boxes of all sizes."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        side = 4 * (SIZE / 5) ** torch.rand(2, generator=random)
        corner = (SIZE - side) * torch.rand(2, generator=random)
        label = int(torch.randint(len(NAMES), (), generator=random))
        found.append((number % 2, label, (*corner.tolist(), *(corner + side).tolist())))
    return batch(sorted(found))


def step(model, given: dict):
    """Loss, items and the gradient of all weights."""
    torch.manual_seed(1)  # the denoising queries are drawn
    model.zero_grad()
    loss, items = model.loss(given)
    loss.sum().backward()
    return loss.sum().item(), items, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def is_dict(model, given: dict) -> bool:
    """Whether the loss items of this version have names, and so room for one more."""
    return isinstance(step(model, given)[1], dict)


def assigned(model, given: dict) -> list[tuple[int, list, float, float]]:
    """Every prediction of the last head that the stock assigner gives a target: row of the target, box in pixels,
    weight, sum of all weights."""
    scene_row = {}
    for row, image in enumerate(given["batch_idx"].int().tolist()):
        scene_row[image, sum(key[0] == image for key in scene_row)] = row
    criterion = model.init_criterion()
    seen = []
    head = getattr(criterion, "one2one", criterion)
    head.assigner.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[1], *outputs)))
    criterion(model(given["img"]), given)
    ((boxes, _, _, scores, is_positive, gt_index),) = seen
    return [
        (
            scene_row[image, int(gt_index[image, point])],
            boxes[image, point].tolist(),
            float(scores[image, point].sum()),
            float(scores.sum()),
        )
        for image, point in is_positive.nonzero().tolist()
    ]


def corners_of(given: dict) -> list[list[float]]:
    boxes = given["bboxes"] * SIZE
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1).tolist()


def area(box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def overlap(first, second) -> float:
    return area([*map(max, first[:2], second[:2]), *map(min, first[2:], second[2:])])


def by_hand(model, given: dict, whole_of: dict[int, int]) -> list[tuple[float, float, float]]:
    """Of every prediction of the last head that the stock assigner gives to a part: penalty, weight, sum of weights.

    From pixels, one prediction after the other.
    """
    corners = corners_of(given)
    return [
        (1 - overlap(box, corners[whole_of[row]]) / area(box), weight, total)
        for row, box, weight, total in assigned(model, given)
        if row in whole_of
    ]
