"""Images with parts and their wholes, from the files that people have and back to files.

A reader returns everything or raises. FileNotFoundError: a file or folder is missing. ValueError: a folder has no
image, or a file is malformed; then it is one sentence that begins with FILE:LINE. ImportError: Pillow, from which all
but `read_coco` have the sizes of images, is not installed; the sizes are as stored, whatever an EXIF orientation says.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .relations import NO_WHOLE, Relations

# Numbers below this, and what is computed from them, stay finite in float32.
TOO_LARGE = 1e30
CCPD_NAME = re.compile(r"[^-]*-[^-]*-([0-9]+)&([0-9]+)_([0-9]+)&([0-9]+)(-[^-]*){4}")


class PairedImage(NamedTuple):
    """An image of ``width`` by ``height`` pixels and its n objects.

    ``boxes`` (n, 4) float32 are xyxy in pixels, ``labels`` (n,) int64 are places in the names of the `PairedData`, and
    ``parent_idx`` (n,) int64 is the row of each box's whole in ``boxes``, -1 where none is known, or `NO_WHOLE` (-2)
    where it is annotated that there is none: as `Relations.anchor_index` takes it.
    """

    file: Path
    width: int
    height: int
    boxes: Tensor
    labels: Tensor
    parent_idx: Tensor


class PairedData(NamedTuple):
    """Images, and the names of their classes in the order of the labels."""

    names: tuple[str, ...]
    images: list[PairedImage]


def read_coco(annotations: str | Path, images: str | Path | None = None) -> PairedData:
    """COCO's JSON for detection, in which an annotation may name its whole.

    ``parent_id`` of an annotation is the id of its whole's, in the same image; null: it has no whole; absent: none is
    known. Annotations with ``iscrowd`` 1 are regions, not objects, and are left out; images without any stay.

    Args:
        annotations: the JSON. Its categories, sorted by id, are the labels 0, 1, ...
        images: the folder that ``file_name`` is relative to; None: that of the JSON. No image is opened.
    """
    file = Path(annotations)
    text = _text(file)
    folder = _folder(file.parent if images is None else images)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line, reason = getattr(error, "lineno", 1), getattr(error, "msg", error)
        raise ValueError(f"{file}:{line}: expected JSON, got text that is not: {reason}") from None
    image_of, category_of, annotation_of = (
        _by_id(file, text, document, key) for key in ("images", "categories", "annotations")
    )
    label_of = {identity: label for label, identity in enumerate(sorted(category_of))}
    names = tuple(_field(*category_of[identity], "name", str) for identity in label_of)
    rows_of: dict[int, dict[int, int]] = {identity: {} for identity in image_of}
    for identity, (place, record) in annotation_of.items():
        rows = rows_of[_reference(place, record, "image_id", image_of)]
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError(f"{place}: expected 'iscrowd' 0 or 1, got {crowd!r}")
        if not crowd:
            rows[identity] = len(rows)
    paired = []
    for identity, (place, record) in image_of.items():
        name = os.path.normpath(folder / _field(place, record, "file_name", str))
        size = _field(place, record, "width", int), _field(place, record, "height", int)
        if min(size) < 1:
            raise ValueError(f"{place}: expected a width and a height of at least 1, got {size[0]} and {size[1]}")
        rows = rows_of[identity]
        paired.append(_paired_image(Path(name), size, [_coco_object(*annotation_of[i], label_of, rows) for i in rows]))
    return PairedData(names, paired)


def read_yolo(
    images: str | Path,
    names: Sequence[str] | Mapping[int, str],
    pairs: Mapping[str, str | Sequence[str]],
    *,
    labels: str | Path | None = None,
    min_containment: float = 0.5,
) -> PairedData:
    """A folder of images, and for each a .txt of lines ``class cx cy w h``, normalised by the image's size.

    Parts are paired by geometry. A missing .txt is an image without objects.

    Args:
        images: the folder.
        names: of all classes: a sequence, or a mapping from the labels 0, 1, ... to names.
        pairs, min_containment: as of `Relations`, which says what is wrong with them.
        labels: the folder of the .txt; None: ``images`` with its last component "images" replaced by "labels".
    """
    relations = Relations(pairs, names, min_containment=min_containment)
    if isinstance(names, Mapping) and set(names) != set(range(len(names))):
        raise ValueError(f"names: expected the labels 0 to {len(names) - 1}, got {', '.join(map(str, names))}")
    folder = _folder(_labels_beside(Path(images)) if labels is None else labels)
    paired = []
    for file in _files(images, "*", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"):
        size, text = _size(file), folder / f"{file.stem}.txt"
        paired.append(_paired_image(file, size, _yolo_objects(text, size, len(names)) if text.exists() else []))
    return PairedData(tuple(names[label] for label in range(len(names))), _paired_by_geometry(paired, relations))


def read_ufpr_alpr(folder: str | Path) -> PairedData:
    """UFPR-ALPR (Laroca et al. 2018, arXiv 1802.09567): the vehicle and the plate of each image, which are a pair.

    Beside each .png or .jpg in ``folder`` and below it a .txt has a line ``position_vehicle: x y w h`` and a line
    ``corners: x,y x,y x,y x,y`` or, in older copies, ``position_plate: x y w h``. Other lines are not looked at.
    """
    files = _files(folder, "**/*", ".jpg", ".png")
    images = [_paired_image(file, _size(file), _ufpr_objects(file.with_suffix(".txt"))) for file in files]
    return PairedData(("vehicle", "plate"), images)


def read_ccpd(folder: str | Path) -> PairedData:
    """CCPD (Xu et al. 2018): the plate of each .jpg in ``folder`` and below it, without a known whole.

    Boxes are in the names: ``area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur.jpg``. Errors have no line.
    """
    files = _files(folder, "**/*", ".jpg")
    return PairedData(("plate",), [_paired_image(file, _size(file), [_ccpd_object(file)]) for file in files])


def read_openalpr(folder: str | Path) -> PairedData:
    """OpenALPR's end-to-end benchmarks: the plates of images in ``folder`` and below it, without known wholes.

    Every .txt has lines ``file x y w h plate`` between tabs, of images beside it; a file may have several lines.
    """
    plates: dict[Path, list[_Object]] = {}
    for file in _files(folder, "**/*", ".txt"):
        for place, line in _lines(file):
            name, *fields = line.split("\t")
            if len(fields) != 5:
                raise ValueError(f"{place}: expected file, x, y, w, h and plate between tabs, got {line!r}")
            image = file.parent / name
            if not image.is_file():
                raise ValueError(f"{place}: expected an image beside the file, got {name!r}")
            plates.setdefault(image, []).append(_Object(0, _corners(place, *_numbers(place, "x y w h", fields[:4]))))
    if not plates:
        raise ValueError(f"{folder}: expected at least one line of an image, got none")
    return PairedData(("plate",), [_paired_image(image, _size(image), of_it) for image, of_it in plates.items()])


def write_coco(data: PairedData, path: str | Path) -> None:
    """A JSON that `read_coco` reads as it was, a record a line, with file names relative to its folder, which is made.

    Ids count from 1. ``parent_id`` is as `read_coco` takes it.
    """
    path = Path(path)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for identity, image in enumerate(data.images, start=1):
        name = Path(os.path.relpath(image.file, path.parent)).as_posix()
        images.append({"id": identity, "file_name": name, "width": image.width, "height": image.height})
        first = len(annotations) + 1
        rows = zip(image.boxes.tolist(), image.labels.tolist(), image.parent_idx.tolist(), strict=True)
        for number, ((x1, y1, x2, y2), label, parent) in enumerate(rows, start=first):
            annotation = {"id": number, "image_id": identity, "category_id": label + 1, "iscrowd": 0}
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if parent == NO_WHOLE or parent >= 0:
                annotation["parent_id"] = None if parent == NO_WHOLE else first + parent
            annotations.append(annotation)
    categories = [{"id": identity, "name": name} for identity, name in enumerate(data.names, start=1)]
    arrays = (("images", images), ("categories", categories), ("annotations", annotations))
    lines = (f'"{key}": [\n' + ",\n".join(map(json.dumps, records)) + "\n]" for key, records in arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def write_yolo(data: PairedData, labels: str | Path) -> None:
    """A .txt of each image, named as it, in the folder ``labels``, which is made. Pairs and names are not in them.

    Raises ValueError, before anything is written, if two images have one name.
    """
    for stem, images in Counter(image.file.stem for image in data.images).items():
        if images > 1:
            raise ValueError(f"data: expected images of different names, got {images} of {stem!r}")
    folder = Path(labels)
    folder.mkdir(parents=True, exist_ok=True)
    for image in data.images:
        lines = [
            f"{label} {(x1 + x2) / 2 / image.width:.9f} {(y1 + y2) / 2 / image.height:.9f} "
            f"{(x2 - x1) / image.width:.9f} {(y2 - y1) / image.height:.9f}\n"
            for (x1, y1, x2, y2), label in zip(image.boxes.tolist(), image.labels.tolist(), strict=True)
        ]
        (folder / f"{image.file.stem}.txt").write_text("".join(lines), encoding="utf-8")


_Box = tuple[float, float, float, float]


class _Object(NamedTuple):
    label: int
    box: _Box
    parent: int = -1


class _Element(NamedTuple):
    """An element of an array of a JSON document; as text its file and line, which are looked for only then."""

    file: Path
    text: str
    key: str
    number: int

    def __str__(self) -> str:
        text, decode = self.text, json.JSONDecoder().raw_decode

        def start(at: int) -> int:
            return next(place for place in count(at) if text[place] not in " \t\r\n,:")

        key, at = decode(text, start(text.index("{") + 1))
        while key != self.key:
            _, at = decode(text, start(at))
            key, at = decode(text, start(at))
        at = text.index("[", at) + 1
        for _ in range(self.number):
            _, at = decode(text, start(at))
        lines = text.count("\n", 0, start(at))
        return f"{self.file}:{lines + 1}"


_Record = tuple[_Element, dict[str, Any]]


def _by_id(file: Path, text: str, document: Any, key: str) -> dict[int, _Record]:
    records = document.get(key) if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{file}:1: expected an object with an array {key!r}, got none")
    by_id: dict[int, _Record] = {}
    for number, record in enumerate(records):
        place = _Element(file, text, key, number)
        if not isinstance(record, dict):
            raise ValueError(f"{place}: expected an object, got {record!r}")
        identity = _field(place, record, "id", int)
        if identity in by_id:
            raise ValueError(f"{place}: expected an 'id' of its own, got {identity} again")
        by_id[identity] = place, record
    return by_id


def _field(place: _Element, record: dict[str, Any], key: str, kind: type) -> Any:
    value = record.get(key)
    if type(value) is not kind:  # isinstance takes True for an int
        raise ValueError(f"{place}: expected {key!r} of type {kind.__name__}, got {value!r}")
    return value


def _reference(place: _Element, record: dict[str, Any], key: str, known: Collection[int]) -> int:
    identity = _field(place, record, key, int)
    if identity not in known:
        raise ValueError(f"{place}: expected {key!r} among the ids of the file, got {identity}")
    return identity


def _coco_object(
    place: _Element, record: dict[str, Any], label_of: Mapping[int, int], rows: Mapping[int, int]
) -> _Object:
    label = label_of[_reference(place, record, "category_id", label_of)]
    # As Python writes numbers, so that strings do not pass for them.
    box = _corners(place, *_numbers(place, "x y w h", map(repr, _field(place, record, "bbox", list))))
    if record.get("parent_id") is None:
        return _Object(label, box, NO_WHOLE if "parent_id" in record else -1)
    parent = _field(place, record, "parent_id", int)
    if parent not in rows or parent == record["id"]:
        raise ValueError(f"{place}: expected 'parent_id' of another object of the image, got {parent}")
    return _Object(label, box, rows[parent])


def _yolo_objects(file: Path, size: tuple[int, int], classes: int) -> list[_Object]:
    width, height = size
    objects = []
    for place, line in _lines(file):
        label, cx, cy, w, h = _numbers(place, "class cx cy w h", line.split())
        if label not in range(classes):
            raise ValueError(f"{place}: expected a class from 0 to {classes - 1}, got {label:g}")
        x1, y1, x2, y2 = _corners(place, cx - w / 2, cy - h / 2, w, h)
        objects.append(_Object(int(label), (x1 * width, y1 * height, x2 * width, y2 * height)))
    return objects


def _ufpr_objects(file: Path) -> list[_Object]:
    boxes: dict[str, _Box] = {}
    place = f"{file}:1"
    for place, line in _lines(file):
        key, _, value = line.partition(":")
        if key in ("position_vehicle", "position_plate"):
            name, box = key.removeprefix("position_"), _corners(place, *_numbers(place, "x y w h", value.split()))
        elif key == "corners":
            corners = _numbers(place, "x1 y1 x2 y2 x3 y3 x4 y4", value.replace(",", " ").split())
            name, box = "plate", (min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2]))
        else:
            continue
        if name in boxes:
            raise ValueError(f"{place}: expected one position of the {name}, got another")
        boxes[name] = box
    for name in ("vehicle", "plate"):
        if name not in boxes:
            raise ValueError(f"{place}: expected the position of the {name} up to here, got none")
    return [_Object(0, boxes["vehicle"]), _Object(1, boxes["plate"], parent=0)]


def _ccpd_object(file: Path) -> _Object:
    match = CCPD_NAME.fullmatch(file.stem)
    if match is None:
        raise ValueError(f"{file}: expected a name area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur, got another")
    x1, y1, x2, y2 = _numbers(file, "x1 y1 x2 y2", match.groups()[:4])
    return _Object(0, _corners(file, x1, y1, x2 - x1, y2 - y1))


def _numbers(place: object, names: str, fields: Iterable[str]) -> list[float]:
    fields = list(fields)
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        numbers = []
    if len(numbers) != len(names.split()) or not all(abs(number) < TOO_LARGE for number in numbers):
        raise ValueError(f"{place}: expected finite numbers {names}, got {' '.join(fields)!r}")
    return numbers


def _corners(place: object, x: float, y: float, w: float, h: float) -> _Box:
    if w < 0 or h < 0:
        raise ValueError(f"{place}: expected sides of at least 0, got {w:g} and {h:g}")
    return x, y, x + w, y + h


def _paired_image(file: Path, size: tuple[int, int], objects: Sequence[_Object]) -> PairedImage:
    boxes = torch.tensor([each.box for each in objects], dtype=torch.float32).reshape(len(objects), 4)
    labels = torch.tensor([each.label for each in objects], dtype=torch.int64)
    return PairedImage(file, *size, boxes, labels, torch.tensor([each.parent for each in objects], dtype=torch.int64))


def _paired_by_geometry(images: list[PairedImage], relations: Relations) -> list[PairedImage]:
    counts = torch.tensor([len(each.boxes) for each in images])
    image = torch.repeat_interleave(counts)
    boxes, labels = torch.cat([each.boxes for each in images]), torch.cat([each.labels for each in images])
    index = relations.anchor_index(boxes, labels, image)
    first_rows = counts.cumsum(0) - counts
    rows = torch.where(index >= 0, index - first_rows[image], -1).split(counts.tolist())
    # Copies: a view would be saved with the rows of all images.
    return [each._replace(parent_idx=of_it.clone()) for each, of_it in zip(images, rows, strict=True)]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, and where they are."""
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", line.rstrip("\r")


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}:{line}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}") from None


def _folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: expected a folder, got none")
    return Path(path)


def _files(folder: str | Path, pattern: str, *suffixes: str) -> list[Path]:
    paths = _folder(folder).glob(pattern)
    files = sorted(path for path in paths if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise ValueError(f"{folder}: expected at least one file {', '.join(suffixes)}, got none")
    return files


def _labels_beside(images: Path) -> Path:
    for folder in (images, *images.parents):
        if folder.name == "images":
            return folder.with_name("labels") / images.relative_to(folder)
    raise ValueError(f"labels: expected a folder, because no component of {images} is 'images', got None")


def _size(file: Path) -> tuple[int, int]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("the size of an image is read by Pillow: pip install icr-kernels[train]") from None
    try:
        with Image.open(file) as image:
            return image.size
    except (UnidentifiedImageError, ModuleNotFoundError):
        # Ultralytics, once imported, has Pillow ask for a decoder that may be missing before it gives up.
        raise ValueError(f"{file}: expected an image, got a file that Pillow does not know") from None
