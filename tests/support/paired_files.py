"""Files of paired data, as tests write them, and what is read of them."""

from pathlib import Path

import torch
from PIL import Image

from icr_kernels import paired_data
from icr_kernels.paired_data import PairedData, PairedImage

COCO = r"""{
  "info": {"images": [[1, 2], {"annotations": []}], "note": "a \"}] and\n{["},
  "annotations": [
    {"id": 7, "image_id": 5, "category_id": 9, "bbox": [10, 20, 4.5, 2], "parent_id": 8, "segmentation": [[1, 2]]},
    {"id": 1, "image_id": 5, "category_id": 2, "bbox": [0, 0, 60, 40], "iscrowd": 1},
    {"id": 8, "image_id": 5, "category_id": 2, "bbox": [5, 5, 20, 30], "iscrowd": 0},
    {"id": 6, "image_id": 3, "category_id": 9, "bbox": [1, 1, 0, 2], "parent_id": null}
  ],
  "images": [
    {"id": 5, "file_name": "a.png", "width": 100, "height": 50},
    {"id": 4, "file_name": "none.png", "width": 3, "height": 4},
    {
      "id": 3, "file_name": "sub/b.png", "width": 10, "height": 20
    }
  ],
  "categories": [
    {"id": 9, "name": "plate"}, {"id": 2, "name": "car", "supercategory": "vehicle"}
  ]
}
"""
NAMES = ["car", "plate"]
CAR, PLATE = range(2)
UFPR = """camera: GoPro Hero4 Silver
position_vehicle: 20 10 50 40
\ttype: car
\tmake: Fiat
plate: ABC-1234
corners: 30,40 45,41 44,46 29,45
\tchar 1: 31 41 2 4
"""
CCPD = "025-95_113-4&5_34&15-34&15_4&15_4&5_34&5-0_0_22_27_27_33_16-37-15.jpg"


# Orientation 6, a quarter turn: what a phone writes that is held upright.
ORIENTATION = 0x0112
TURNED = Image.Exif()
TURNED[ORIENTATION] = 6


def image_file(path: Path, size: tuple[int, int] = (100, 50), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1", size).save(path, **options)
    return path


def text_file(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def content(image: PairedImage) -> tuple[list[list[float]], list[int], list[int]]:
    assert (image.boxes.dtype, image.labels.dtype, image.parent_idx.dtype) == (torch.float32, torch.int64, torch.int64)
    assert image.boxes.shape == (len(image.labels), 4)
    return image.boxes.tolist(), image.labels.tolist(), image.parent_idx.tolist()


def sizes(data: PairedData) -> list[tuple[Path, int, int]]:
    return [(image.file, image.width, image.height) for image in data.images]


def read_yolo(folder: Path) -> PairedData:
    return paired_data.read_yolo(folder, NAMES, {"plate": "car"}, labels=folder)
