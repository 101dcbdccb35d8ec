"""Images with parts and their wholes, from the files that people have and back to files.

A reader returns everything or raises. FileNotFoundError: a file or folder is missing. ValueError: a folder has no
image, or a file is malformed; then it is one sentence that begins with FILE:LINE. ImportError: Pillow, from which all
but `read_coco` have the sizes of images, is not installed.

Sizes are those of images as viewers and OpenCV show them, turned as their EXIF orientation says; who opens them with
Pillow has to turn them (`PIL.ImageOps.exif_transpose`). What lies in sub-folders is read too, links are followed, and
files and folders whose names begin with a dot are passed over.
"""

import json
import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .relations import NO_WHOLE, Relations

# Numbers below this, and what is computed from them, stay finite in float32.
TOO_LARGE = 1e30
# How far beyond 0 and 1 the numbers of a YOLO file may be, as for Ultralytics: roundings are, pixels are farther.
BEYOND = 0.01
EXIF_ORIENTATION, TURNS_SIDEWAYS = 0x0112, (5, 6, 7, 8)
TIFF_SIZE = 0x0100, 0x0101
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

    Sizes are as stated. Images need not be there; the header of those that are is looked at, if Pillow is installed and
    knows the format, and another size than the stated one is an error: then the boxes do not fit what a program shows.

    Args:
        annotations: the JSON. Its categories, sorted by id, are the labels 0, 1, ... One that no annotation has and
            that only groups others (it is the ``supercategory`` of another, and not its own) is left out: Roboflow's
            exports begin with such. Compare the names of files that you use together.
        images: the folder that ``file_name`` is relative to; None: that of the JSON.
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
    classes = _classes(category_of, annotation_of)
    label_of = {identity: label for label, identity in enumerate(classes)}
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
        path = Path(os.path.normpath(folder / _field(place, record, "file_name", str)))
        size = _field(place, record, "width", int), _field(place, record, "height", int)
        if min(size) < 1:
            raise ValueError(f"{place}: expected a width and a height of at least 1, got {size[0]} and {size[1]}")
        _check_size(place, path, size)
        rows = rows_of[identity]
        paired.append(_paired_image(path, size, [_coco_object(*annotation_of[i], label_of, rows) for i in rows]))
    return PairedData(tuple(classes.values()), paired)


def read_yolo(
    images: str | Path,
    names: Sequence[str] | Mapping[int, str],
    pairs: Mapping[str, str | Sequence[str]],
    *,
    labels: str | Path | None = None,
    min_containment: float = 0.5,
) -> PairedData:
    """A folder of images, and for each a .txt of lines ``class cx cy w h``, normalised by the image's size.

    Parts are paired by geometry. A missing .txt is an image without objects. The .txt of an image in a sub-folder is in
    the same sub-folder of ``labels``. Boxes are clipped to the image; but a centre outside of it, or a box larger than
    it, by more than roundings are (1 %), is an error: such numbers are pixels, or Ultralytics leaves the image out.

    Args:
        images: the folder.
        names: of all classes: a sequence, or a mapping from the labels 0, 1, ... to names.
        pairs, min_containment: as of `Relations`, which says what is wrong with them.
        labels: the folder of the .txt; None: ``images`` with its last component "images" replaced by "labels". Labels
            that are elsewhere in it, in no sub-folder or in another one than their image, are an error.
    """
    relations = Relations(pairs, names, min_containment=min_containment)
    if isinstance(names, Mapping) and set(names) != set(range(len(names))):
        raise ValueError(f"names: expected the labels 0 to {len(names) - 1}, got {', '.join(map(str, names))}")
    folder = _folder(_labels_beside(Path(images)) if labels is None else labels)
    paired = []
    text_of = {
        file: folder / file.relative_to(images).with_suffix(".txt")
        for file in _files(images, ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
    }
    _check_places(text_of, _found(folder, ".txt"))
    for file, text in text_of.items():
        size = _size(file)
        paired.append(_paired_image(file, size, _yolo_objects(text, size, len(names)) if text.exists() else []))
    return PairedData(tuple(names[label] for label in range(len(names))), _paired_by_geometry(paired, relations))


def read_ufpr_alpr(folder: str | Path) -> PairedData:
    """UFPR-ALPR (Laroca et al. 2018, arXiv 1802.09567): the vehicle and the plate of each image, which are a pair.

    Beside each .png or .jpg in ``folder`` and below it a .txt has a line ``position_vehicle: x y w h`` and a line
    ``corners: x,y x,y x,y x,y`` or, in older copies, ``position_plate: x y w h``. Other lines are not looked at.
    """
    files = _files(folder, ".jpg", ".png")
    images = [_paired_image(file, _size(file), _ufpr_objects(file.with_suffix(".txt"))) for file in files]
    return PairedData(("vehicle", "plate"), images)


def read_ccpd(folder: str | Path) -> PairedData:
    """CCPD (Xu et al. 2018): the plate of each .jpg in ``folder`` and below it, without a known whole.

    Boxes are in the names: ``area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur.jpg``. Errors have no line. An image
    in a folder ``ccpd_np`` that is named by a number has no plate.
    """
    files = _files(folder, ".jpg")
    return PairedData(("plate",), [_paired_image(file, _size(file), _ccpd_objects(file)) for file in files])


def read_openalpr(folder: str | Path) -> PairedData:
    """OpenALPR's end-to-end benchmarks: the plates of images in ``folder`` and below it, without known wholes.

    Every .txt has lines ``file x y w h plate`` between tabs, of images beside it; a file may have several lines.
    """
    plates: dict[Path, list[_Object]] = {}
    for file in _files(folder, ".txt"):
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


def write_yolo(data: PairedData, labels: str | Path, *, images: str | Path | None = None) -> None:
    """A .txt of each image in the folder ``labels``, which is made, as `read_yolo` reads it: named as the image, and in
    a sub-folder if the image is in one of ``images``. Pairs and names are not in them.

    Boxes are clipped to the image, as the format has no place beyond it. Raises ValueError, before anything is written,
    for a box that is wholly outside, an image that is not below ``images``, and two of one name in one folder.

    Args:
        data: the images, which need not be there.
        labels: the folder of the .txt.
        images: the folder that `read_yolo` will be given; None: the innermost one that has all images of ``data``.
    """
    folders = [os.path.abspath(image.file.parent) for image in data.images]
    root = os.path.abspath(images) if images is not None else os.path.commonpath(folders) if folders else ""
    texts: dict[Path, str] = {}
    for image, folder in zip(data.images, folders, strict=True):
        if not Path(folder).is_relative_to(root):
            raise ValueError(f"data: expected images below {images}, got {image.file}")
        name = Path(folder).relative_to(root) / image.file.stem
        text = Path(labels) / f"{name}.txt"
        if text in texts:
            raise ValueError(f"data: expected images of different names, got two of {str(name)!r}")
        texts[text] = "".join(_yolo_lines(image))
    Path(labels).mkdir(parents=True, exist_ok=True)
    for text, lines in texts.items():
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(lines, encoding="utf-8")


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


def _classes(category_of: Mapping[int, _Record], annotation_of: Mapping[int, _Record]) -> dict[int, str]:
    """The names of the categories by id, in the order of the labels, without those that only group others."""
    names = {identity: _field(*category_of[identity], "name", str) for identity in sorted(category_of)}
    groups = {identity: record.get("supercategory") for identity, (_, record) in category_of.items()}
    grouping = {group for group in groups.values() if isinstance(group, str)}
    used = {_reference(*each, "category_id", category_of) for each in annotation_of.values()}
    # One that belongs to itself is a class, also in a split that lacks it.
    return {
        identity: name
        for identity, name in names.items()
        if identity in used or name not in grouping or name == groups[identity]
    }


def _check_size(place: _Element, file: Path, stated: tuple[int, int]) -> None:
    try:
        shown, stored = _sizes(file)
    except (ImportError, OSError, ValueError):
        return  # it is missing, or nothing but what is stated can be known of it
    if stated != shown:
        width, height = shown
        how, why = (
            (" as it is shown", ", the size before its EXIF orientation turns it") if stated == stored else ("", "")
        )
        raise ValueError(
            f"{place}: expected the size of {file}, {width} x {height}{how}, got {stated[0]} x {stated[1]}{why}"
        )


def _coco_object(
    place: _Element, record: dict[str, Any], label_of: Mapping[int, int], rows: Mapping[int, int]
) -> _Object:
    label = label_of[record["category_id"]]
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
        corners = _corners(place, cx - w / 2, cy - h / 2, w, h)
        if not all(-BEYOND <= number <= 1 + BEYOND for number in (cx, cy, w, h)):
            numbers = " ".join(line.split()[1:])
            raise ValueError(f"{place}: expected cx cy w h from 0 to 1, in sides of the image, got {numbers!r}")
        x1, y1, x2, y2 = (min(max(corner, 0.0), 1.0) for corner in corners)
        objects.append(_Object(int(label), (x1 * width, y1 * height, x2 * width, y2 * height)))
    return objects


def _yolo_lines(image: PairedImage) -> Iterator[str]:
    _, width, height, boxes, labels, _ = image
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        x1, y1, x2, y2 = box
        if x1 > width or y1 > height or x2 < 0 or y2 < 0:
            raise ValueError(f"data: expected boxes in their image of {width} x {height}, got {box} of {image.file}")
        x1, y1, x2, y2 = max(x1, 0) / width, max(y1, 0) / height, min(x2, width) / width, min(y2, height) / height
        yield f"{label} {(x1 + x2) / 2:.9f} {(y1 + y2) / 2:.9f} {x2 - x1:.9f} {y2 - y1:.9f}\n"


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


def _ccpd_objects(file: Path) -> list[_Object]:
    if file.absolute().parent.name == "ccpd_np" and file.stem.isdecimal():
        return []
    match = CCPD_NAME.fullmatch(file.stem)
    if match is None:
        raise ValueError(f"{file}: expected a name area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur, got another")
    x1, y1, x2, y2 = _numbers(file, "x1 y1 x2 y2", match.groups()[:4])
    return [_Object(0, _corners(file, x1, y1, x2 - x1, y2 - y1))]


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


def _files(folder: str | Path, *suffixes: str) -> list[Path]:
    files = _found(_folder(folder), *suffixes)
    if not files:
        raise ValueError(f"{folder}: expected at least one file {', '.join(suffixes)}, got none")
    return files


def _found(folder: Path, *suffixes: str) -> list[Path]:
    """The files in a folder and below it, sorted. A link to a folder that it is in would lead back for ever."""
    files: list[Path] = []
    above: dict[str, frozenset[str]] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        real, outer = os.path.realpath(place), above.get(os.path.dirname(place), frozenset())
        above[place] = outer | {real}
        if real in outer:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += (Path(place, name) for name in names if not name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in suffixes and file.is_file())


def _check_places(text_of: Mapping[Path, Path], texts: Iterable[Path]) -> None:
    """That no labels would be passed over because they are not where those of their image are to be."""
    elsewhere = {text.stem: text for text in set(texts).difference(text_of.values())}
    for file, text in text_of.items():
        if file.stem in elsewhere and not text.exists():
            raise ValueError(f"{file}: expected its labels in {text}, got {elsewhere[file.stem]}")
    if elsewhere and not any(text.exists() for text in text_of.values()):
        raise ValueError(f"{text.parent}: expected the labels of an image, such as {text.name}, got others")


def _labels_beside(images: Path) -> Path:
    for folder in (images, *images.parents):
        if folder.name == "images":
            return folder.with_name("labels") / images.relative_to(folder)
    raise ValueError(f"labels: expected a folder, because no component of {images} is 'images', got None")


def _size(file: Path) -> tuple[int, int]:
    return _sizes(file)[0]


def _sizes(file: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of an image as it is shown, and as it is stored."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("the size of an image is read by Pillow: pip install pillow") from None
    try:
        with Image.open(file) as image:
            if image.format == "TIFF":  # which newer versions of Pillow turn themselves
                tags = image.getexif()
                stored, orientation = (tags[TIFF_SIZE[0]], tags[TIFF_SIZE[1]]), tags.get(EXIF_ORIENTATION)
            else:
                if image.format == "PNG" and "exif" not in image.info and b"eXIf" in file.read_bytes():
                    image.load()  # it may be behind the pixels
                stored, orientation = image.size, _orientation(image.info.get("exif"))
    except (UnidentifiedImageError, ModuleNotFoundError):
        # Ultralytics, once imported, has Pillow ask for a decoder that may be missing before it gives up.
        raise ValueError(f"{file}: expected an image, got a file that Pillow does not know") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file}: expected an image that Pillow opens, got one of which it says: {error}") from None
    return (stored[::-1] if orientation in TURNS_SIDEWAYS else stored), stored


def _orientation(data: bytes | None) -> object:
    # Not `Image.getexif`, which decodes a PNG and takes the orientation of XMP, that nobody else looks at.
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(data or b"")
    except (SyntaxError, struct.error):
        return None
    return exif.get(EXIF_ORIENTATION)
