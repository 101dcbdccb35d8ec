"""Paired data as users have it: readers, writers, and what is said of malformed files."""

import json
import re
import struct
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError

import icr_kernels as icr
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


def random_data(folder: Path, seed: int) -> PairedData:
    """Images of 0 to 5 boxes, some without any, in two folders, with pairs of every kind."""
    random = torch.Generator().manual_seed(seed)
    images = []
    for number in range(6):
        count = 0 if number == 2 else int(torch.randint(6, (), generator=random))
        width, height = torch.randint(50, 3000, (2,), generator=random).tolist()
        ends = torch.rand(count, 2, 2, generator=random).sort(1).values * torch.tensor([width, height])
        labels = torch.randint(3, (count,), generator=random)
        parents = torch.tensor([int(torch.randint(-2, row, (), generator=random)) for row in range(count)]).long()
        file = folder / ("sub" if number % 2 else ".") / f"{number}.ä b.png"
        images.append(PairedImage(file, width, height, ends.reshape(count, 4), labels, parents))
    return PairedData(("car", "plate", "véhicule"), images)


def test_coco(tmp_path):
    data = paired_data.read_coco(text_file(tmp_path / "a.json", COCO))
    assert data.names == ("car", "plate")
    assert sizes(data) == [
        (tmp_path / "a.png", 100, 50),
        (tmp_path / "none.png", 3, 4),
        (tmp_path / "sub" / "b.png", 10, 20),
    ]
    # The crowd is no row; a whole is a row of its image, after its part here.
    assert content(data.images[0]) == ([[10, 20, 14.5, 22], [5, 5, 25, 35]], [PLATE, CAR], [1, -1])
    assert content(data.images[1]) == ([], [], [])
    assert content(data.images[2]) == ([[1, 1, 1, 3]], [PLATE], [-2])


def test_coco_with_images_elsewhere(tmp_path):
    (tmp_path / "images").mkdir()
    file = text_file(tmp_path / "annotations" / "a.json", b"\xef\xbb\xbf" + COCO.encode())
    data = paired_data.read_coco(str(file), str(tmp_path / "images"))
    assert data.images[2].file == tmp_path / "images" / "sub" / "b.png"


def with_categories(path: Path, *categories: tuple[int, str, str], used: tuple[int, ...]) -> PairedData:
    document = {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 100, "height": 50}],
        "categories": [{"id": i, "name": name, "supercategory": group} for i, name, group in categories],
        "annotations": [
            {"id": row, "image_id": 0, "category_id": category, "bbox": [0, 0, 9 - row, 9 - row]}
            for row, category in enumerate(used)
        ],
    }
    return paired_data.read_coco(text_file(path, json.dumps(document)))


@pytest.mark.parametrize("used", [(1, 2), (1,), ()])
def test_coco_as_roboflow_exports_it(tmp_path, used):
    """A group that nothing is annotated with is no class; the labels are the same in a split that lacks a class."""
    categories = (0, "plate", "none"), (1, "car", "plate"), (2, "plate", "plate")
    data = with_categories(tmp_path / "a.json", *categories, used=used)
    assert data.names == ("car", "plate")
    assert data.images[0].labels.tolist() == [CAR, PLATE][: len(used)]
    icr.Relations({"plate": "car"}, data.names)


@pytest.mark.parametrize(
    ("categories", "used", "names", "labels"),
    [
        (((0, "alpr-7", "none"), (3, "car", "alpr-7"), (5, "bus", "alpr-7")), (5,), ("car", "bus"), [1]),
        # What is annotated is a class, whatever hangs on it; and so is what is nobody's group.
        (((0, "vehicle", "none"), (1, "car", "vehicle")), (1, 0), ("vehicle", "car"), [1, 0]),
        (((1, "person", "person"), (2, "dog", "animal")), (), ("person", "dog"), []),
    ],
)
def test_coco_groups(tmp_path, categories, used, names, labels):
    data = with_categories(tmp_path / "a.json", *categories, used=used)
    assert data.names == names and data.images[0].labels.tolist() == labels


def test_annotated_pairs_as_known_pairs(tmp_path):
    """What is read goes into `Relations`: a known pair against geometry, a part known to have none, one looked for."""
    boxes = torch.tensor([[0.0, 0, 50, 50], [60, 0, 90, 50], [10, 10, 20, 15], [10, 20, 20, 25], [70, 10, 80, 15]])
    labels, parents = torch.tensor([CAR, CAR, PLATE, PLATE, PLATE]), torch.tensor([-1, -1, 1, -2, -1])
    data = PairedData(tuple(NAMES), [PairedImage(tmp_path / "a.png", 100, 50, boxes, labels, parents)])
    paired_data.write_coco(data, tmp_path / "a.json")
    names, (image,) = paired_data.read_coco(tmp_path / "a.json")
    relations = icr.Relations({"plate": "car"}, names)
    index = relations.anchor_index(image.boxes, image.labels, parent_idx=image.parent_idx)
    assert index.tolist() == [-1, -1, 1, -1, 1]
    assert relations.anchor_index(image.boxes, image.labels).tolist() == [-1, -1, 0, 0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_coco_round_trip(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    data = random_data(Path("images"), seed)
    file = Path("made") / "deep" / "a.json"
    paired_data.write_coco(data, file)
    back = paired_data.read_coco(file)
    assert back.names == data.names
    assert sizes(back) == sizes(data)
    for image, same in zip(data.images, back.images, strict=True):
        torch.testing.assert_close(same.boxes, image.boxes)
        assert content(same)[1:] == content(image)[1:]


def test_coco_as_written(tmp_path):
    boxes = torch.tensor([[0.0, 0, 50, 40], [10, 10, 20, 15], [10, 20, 20, 25.5]])
    image = PairedImage(
        tmp_path / "images" / "a.png", 100, 50, boxes, torch.tensor([0, 1, 1]), torch.tensor([-1, 0, -2])
    )
    paired_data.write_coco(PairedData(tuple(NAMES), [image, image]), tmp_path / "labels" / "a.json")
    written = json.loads((tmp_path / "labels" / "a.json").read_text())
    assert written["images"][1] == {"id": 2, "file_name": "../images/a.png", "width": 100, "height": 50}
    assert written["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "plate"}]
    whole, part, alone = written["annotations"][3:]
    same = {"image_id": 2, "iscrowd": 0}
    assert whole == {"id": 4, "category_id": 1, "bbox": [0, 0, 50, 40], "area": 2000, **same}
    assert part == {"id": 5, "category_id": 2, "bbox": [10, 10, 10, 5], "area": 50, "parent_id": 4, **same}
    assert alone == {"id": 6, "category_id": 2, "bbox": [10, 20, 10, 5.5], "area": 55, "parent_id": None, **same}


def test_yolo(tmp_path):
    """Of two images with one car between them, the plate of the other has none, though the car lies around it."""
    folder = tmp_path / "images" / "images" / "train"
    labels = tmp_path / "images" / "labels" / "train"
    files = [image_file(folder / name) for name in ("a.png", "b.JPG", "c.d.png", "e.bmp")]
    text_file(labels / "a.txt", "0 0.5 0.5 0.6 0.8\r\n\r\n  \n")
    text_file(labels / "b.txt", "1 0.5 0.5 0.1 0.2\n")
    text_file(labels / "c.d.txt", "1 0.3 0.5 0.1 0.2\n0.0 0.75 0.5 0.5 1\n1 0.75 0.5 0.1 0.2")
    text_file(folder / "notes.md", "no image")
    data = paired_data.read_yolo(folder, {1: "plate", 0: "car"}, {"plate": "car"})
    assert data.names == ("car", "plate")
    assert sizes(data) == [(file, 100, 50) for file in files]
    expected = [
        ([[20, 5, 80, 45]], [CAR], [-1]),
        ([[45, 20, 55, 30]], [PLATE], [-1]),
        ([[25, 20, 35, 30], [50, 0, 100, 50], [70, 20, 80, 30]], [PLATE, CAR, PLATE], [-1, -1, 1]),
        ([], [], []),
    ]
    for image, (boxes, *numbers) in zip(data.images, expected, strict=True):
        torch.testing.assert_close(image.boxes, torch.tensor(boxes, dtype=torch.float32).reshape(len(boxes), 4))
        assert list(content(image)[1:]) == numbers
    # Rows of the image alone are what is held, and saved.
    assert data.images[0].parent_idx.untyped_storage().nbytes() == 8


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0.9502 0.5 0.1004 1.0004", [90, 0, 100, 50]),  # edges at 1.0004 and 1.0002: rounding
        ("0.05 -0.005 0.1 0.2", [0, 0, 10, 4.75]),
        ("0.8 1.009 0.2 0.1", [70, 47.95, 90, 50]),
        ("0.9 0.5 0.4 0.2", [70, 20, 100, 30]),  # a car beyond the image
        ("0 0 1 1", [0, 0, 50, 25]),
    ],
)
def test_yolo_boxes_are_clipped_to_the_image(tmp_path, line, box):
    image_file(tmp_path / "a.png")
    text_file(tmp_path / "a.txt", f"0 {line}")
    torch.testing.assert_close(read_yolo(tmp_path).images[0].boxes, torch.tensor([box], dtype=torch.float32))


def test_yolo_sub_folders(tmp_path):
    """Images below the folder have their labels below that of the labels, wherever it is; so have links."""
    folder = tmp_path / "images" / "train"
    files = [image_file(folder / name) for name in ("a/x.png", "b/c/x.jpg", "x.png")]
    for place in ("labels/train", "elsewhere"):
        for number, name in enumerate(("a/x", "b/c/x", "x")):
            text_file(tmp_path / place / f"{name}.txt", f"{number % 2} 0.5 0.5 0.{number + 2} 0.2\n")
    image_file(folder / ".thumbnails" / "y.png")
    for labels in (None, tmp_path / "elsewhere"):
        data = paired_data.read_yolo(folder, NAMES, {"plate": "car"}, labels=labels)
        assert sizes(data) == [(file, 100, 50) for file in files]
        assert [image.labels.tolist() for image in data.images] == [[0], [1], [0]]
        widths = torch.cat([image.boxes[:, 2] - image.boxes[:, 0] for image in data.images])
        torch.testing.assert_close(widths, torch.tensor([20.0, 30, 40]))
    for kind in ("images", "labels"):
        (tmp_path / kind / "linked").mkdir()
        (tmp_path / kind / "linked" / "b").symlink_to(tmp_path / kind / "train" / "b", target_is_directory=True)
    (image,) = paired_data.read_yolo(tmp_path / "images" / "linked", NAMES, {"plate": "car"}).images
    assert image.file == tmp_path / "images/linked/b/c/x.jpg" and image.labels.tolist() == [1]


def test_yolo_labels_that_are_not_where_the_images_are(tmp_path):
    folder = tmp_path / "images"
    image_file(folder / "a" / "x.png")
    (tmp_path / "labels").mkdir()
    assert content(paired_data.read_yolo(folder, NAMES, {"plate": "car"}).images[0]) == ([], [], [])
    text_file(tmp_path / "labels" / "x.txt", "0 0.5 0.5 0.1 0.2\n")
    there, here = tmp_path / "labels" / "a" / "x.txt", tmp_path / "labels" / "x.txt"
    message = f"{folder / 'a' / 'x.png'}: expected its labels in {there}, got {here}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paired_data.read_yolo(folder, NAMES, {"plate": "car"})
    # Whether or not another image has its own.
    image_file(folder / "y.png")
    text_file(tmp_path / "labels" / "y.txt", "0 0.5 0.5 0.1 0.2\n")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paired_data.read_yolo(folder, NAMES, {"plate": "car"})


def test_yolo_labels_of_no_image(tmp_path):
    """Notes beside the labels are no error, but labels of which none fits are."""
    folder = tmp_path / "images"
    image_file(folder / "x.png")
    text_file(tmp_path / "labels" / "classes.txt", "car\nplate\n")
    message = f"{tmp_path / 'labels'}: expected the labels of an image, such as x.txt, got others"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paired_data.read_yolo(folder, NAMES, {"plate": "car"})
    text_file(tmp_path / "labels" / "x.txt", "0 0.5 0.5 0.1 0.2\n")
    assert len(paired_data.read_yolo(folder, NAMES, {"plate": "car"}).images[0].boxes) == 1


def test_links_that_lead_back(tmp_path):
    """An image is read once, through links too."""
    folder = tmp_path / "images"
    image_file(folder / "x.png")
    image_file(tmp_path / "elsewhere" / "y.png")
    (folder / "back").symlink_to(folder, target_is_directory=True)
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "labels").mkdir()
    found = paired_data.read_yolo(folder, NAMES, {"plate": "car"})
    assert [each.file.relative_to(folder).as_posix() for each in found.images] == ["linked/y.png", "x.png"]


def test_yolo_options(tmp_path):
    image_file(tmp_path / "a.png")
    text_file(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.2\n1 0.6 0.5 0.2 0.2\n")
    read = paired_data.read_yolo
    for least, expected in ((0.5, [-1, 0]), (0.6, [-1, -1])):
        data = read(str(tmp_path), NAMES, {"plate": "car"}, labels=str(tmp_path), min_containment=least)
        assert data.images[0].parent_idx.tolist() == expected
    with pytest.raises(ValueError, match=f"^labels: expected a folder, because no component of {tmp_path} is 'images'"):
        read(tmp_path, NAMES, {"plate": "car"})
    with pytest.raises(ValueError, match=r"^names: expected the labels 0 to 1, got 1, 2$"):
        read(tmp_path, {1: "car", 2: "plate"}, {"plate": "car"}, labels=tmp_path)
    with pytest.raises(ValueError, match=r"^pairs: expected classes among car, plate, got 'bus'$"):
        read(tmp_path, NAMES, {"plate": "bus"}, labels=tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_yolo_round_trip(tmp_path, seed):
    images = [
        image._replace(file=image_file(tmp_path / "images" / image.file.name, (image.width, image.height)))
        for image in random_data(tmp_path, seed).images
    ]
    wide = torch.tensor([[11999.4, 0, 11999.9, 1.125]])
    file = image_file(tmp_path / "images" / "wide.png", (12000, 2))
    images.append(PairedImage(file, 12000, 2, wide, torch.tensor([2]), torch.tensor([-1])))
    paired_data.write_yolo(PairedData(("a", "b", "c"), images), tmp_path / "labels")
    assert len(list((tmp_path / "labels").iterdir())) == len(images)
    back = paired_data.read_yolo(tmp_path / "images", ["a", "b", "c"], {"a": "b"})
    assert sizes(back) == sizes(PairedData((), images))
    for image, same in zip(images, back.images, strict=True):
        torch.testing.assert_close(same.boxes, image.boxes, rtol=0, atol=1e-3)
        assert content(same)[1] == content(image)[1]


def one_box(file: Path, *box: float) -> PairedImage:
    return PairedImage(file, 100, 50, torch.tensor([box], dtype=torch.float32), torch.tensor([CAR]), torch.tensor([-1]))


@pytest.mark.parametrize("name", ["1.png", "y/1.jpg"])
def test_yolo_images_of_one_name(tmp_path, name):
    """In folders of their own their labels are so too; in one folder they would overwrite each other."""
    files = [image_file(tmp_path / "images" / each) for each in ("x/1.png", "2.png", name)]
    images = [one_box(file, 10 * row, 0, 50, 50) for row, file in enumerate(files)]
    paired_data.write_yolo(PairedData(tuple(NAMES), images), tmp_path / "labels")
    back = paired_data.read_yolo(tmp_path / "images", NAMES, {"plate": "car"})
    boxes = {image.file: image.boxes for image in back.images}
    for image in images:
        torch.testing.assert_close(boxes[image.file], image.boxes)
    images.append(images[-1]._replace(file=images[-1].file.with_suffix(".bmp")))
    where = str(Path(name).with_suffix(""))
    with pytest.raises(ValueError, match=f"^data: expected images of different names, got two of {where!r}$"):
        paired_data.write_yolo(PairedData(tuple(NAMES), images), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_yolo_labels_of_one_of_several_folders(tmp_path, monkeypatch):
    """``images`` says what the reader will be given; else it is the folder that holds them all."""
    monkeypatch.chdir(tmp_path)
    data = PairedData(tuple(NAMES), [one_box(image_file(Path("images/train/a/x.png")), 10, 10, 50, 50)])
    paired_data.write_yolo(data, "labels/train", images="images/train")
    assert paired_data.read_yolo("images/train", NAMES, {"plate": "car"}).images[0].labels.tolist() == [CAR]
    paired_data.write_yolo(data, "flat")
    assert [file.relative_to("flat") for file in Path("flat").rglob("*")] == [Path("x.txt")]
    message = f"data: expected images below images/val, got {data.images[0].file}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paired_data.write_yolo(data, "none", images="images/val")
    paired_data.write_yolo(PairedData(tuple(NAMES), []), "none")
    assert list(Path("none").iterdir()) == []


def test_yolo_boxes_beyond_the_image_as_written(tmp_path):
    """They are clipped to it, so that they can be read again, by Ultralytics too, and then stay what they are."""
    boxes = torch.tensor([[-30.0, 5, 60, 80], [90, 10, 190, 20], [-20, -20, 500, 500]])
    image = one_box(image_file(tmp_path / "images" / "a.png"), 0, 0, 0, 0)
    image = image._replace(boxes=boxes, labels=torch.zeros(3, dtype=torch.int64), parent_idx=torch.full((3,), -1))
    data = PairedData(tuple(NAMES), [image])
    for _ in range(2):
        paired_data.write_yolo(data, tmp_path / "labels")
        numbers = [line.split()[1:] for line in (tmp_path / "labels" / "a.txt").read_text().splitlines()]
        assert all(0 <= float(number) <= 1 for line in numbers for number in line)
        data = paired_data.read_yolo(tmp_path / "images", NAMES, {"plate": "car"})
        expected = torch.tensor([[0.0, 5, 60, 50], [90, 10, 100, 20], [0, 0, 100, 50]])
        torch.testing.assert_close(data.images[0].boxes, expected, rtol=0, atol=1e-4)
    for outside in (
        (101.0, 0.0, 120.0, 50.0),
        (-9.0, 0.0, -1.0, 50.0),
        (0.0, 51.0, 50.0, 52.0),
        (0.0, -9.0, 50.0, -1.0),
    ):
        far = one_box(image.file, *outside)
        message = f"data: expected boxes in their image of 100 x 50, got {list(outside)} of {image.file}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            paired_data.write_yolo(PairedData(tuple(NAMES), [far]), tmp_path / "none")
        assert not (tmp_path / "none").exists()


def test_ufpr_alpr(tmp_path):
    first = image_file(tmp_path / "training" / "track0001" / "a[01].png", (1920, 1080))
    older = image_file(tmp_path / "validation" / "b.jpg")
    text_file(first.with_suffix(".txt"), UFPR)
    text_file(older.with_suffix(".txt"), "position_plate: 3 4 5 6\nposition_vehicle: 1 2 30 40\n")
    data = paired_data.read_ufpr_alpr(tmp_path)
    assert data.names == ("vehicle", "plate")
    assert sizes(data) == [(first, 1920, 1080), (older, 100, 50)]
    assert content(data.images[0]) == ([[20, 10, 70, 50], [29, 40, 45, 46]], [0, 1], [-1, 0])
    assert content(data.images[1]) == ([[1, 2, 31, 42], [3, 4, 8, 10]], [0, 1], [-1, 0])


def test_ccpd(tmp_path):
    file = image_file(tmp_path / "ccpd_base" / CCPD)
    data = paired_data.read_ccpd(tmp_path)
    assert data.names == ("plate",)
    assert sizes(data) == [(file, 100, 50)]
    assert content(data.images[0]) == ([[4, 5, 34, 15]], [0], [-1])


def test_ccpd_images_without_a_plate(tmp_path, monkeypatch):
    """CCPD2019 has a folder of them, named by numbers."""
    files = [image_file(tmp_path / "ccpd_base" / CCPD), image_file(tmp_path / "ccpd_np" / "1005.jpg")]
    data = paired_data.read_ccpd(tmp_path)
    assert [image.file for image in data.images] == files
    assert [content(image)[0] for image in data.images] == [[[4, 5, 34, 15]], []]
    monkeypatch.chdir(tmp_path / "ccpd_np")
    assert content(paired_data.read_ccpd(".").images[0]) == ([], [], [])


def test_openalpr(tmp_path):
    files = [image_file(tmp_path / name) for name in ("eu/a.jpg", "eu/b.png", "us/a.jpg")]
    text_file(tmp_path / "eu" / "1.txt", "a.jpg\t10\t20\t30\t5\tAB 123\n")
    text_file(tmp_path / "eu" / "2.txt", "b.png\t1\t2\t3\t4\tX\r\n\r\na.jpg\t0\t0\t9\t8.5\t\r\n")
    text_file(tmp_path / "us" / "a.txt", "a.jpg\t1\t1\t1\t1\tY")
    data = paired_data.read_openalpr(tmp_path)
    assert data.names == ("plate",)
    assert sizes(data) == [(file, 100, 50) for file in files]
    assert content(data.images[0]) == ([[10, 20, 40, 25], [0, 0, 9, 8.5]], [0, 0], [-1, -1])
    assert content(data.images[1]) == ([[1, 2, 4, 6]], [0], [-1])
    assert content(data.images[2]) == ([[1, 1, 2, 2]], [0], [-1])


@pytest.mark.parametrize(
    ("old", "new", "place_and_message"),
    [
        ('"id": 5, "file', "id: 5", "10: expected JSON, got text that is not: Expecting property name enclosed in"),
        (COCO, "", "1: expected JSON, got text that is not: Expecting value"),
        (COCO, "[" * 10**6, "1: expected JSON, got text that is not: "),
        (COCO, "[]", "1: expected an object with an array 'images', got none"),
        ('"categories"', '"category"', "1: expected an object with an array 'categories', got none"),
        ('"annotations": [\n', '"annotations": [\n7,', "4: expected an object, got 7"),
        ('"id": 6, ', "", "7: expected 'id' of type int, got None"),
        ('"id": 6', '"id": true', "7: expected 'id' of type int, got True"),
        ('"id": 6', '"id": 7', "7: expected an 'id' of its own, got 7 again"),
        ('"id": 3', '"id": 4', "12: expected an 'id' of its own, got 4 again"),
        ('{"id": 2', '\n{"id": 9', "18: expected an 'id' of its own, got 9 again"),
        ('"image_id": 3', '"image_id": "3"', "7: expected 'image_id' of type int, got '3'"),
        ('"image_id": 3', '"image_id": 2', "7: expected 'image_id' among the ids of the file, got 2"),
        ('"category_id": 9, "bbox": [1,', '"category_id": 1, "bbox": [1,', "7: expected 'category_id' among the ids"),
        ('"width": 3', '"width": 3.0', "11: expected 'width' of type int, got 3.0"),
        ('"height": 20', '"height": 0', "12: expected a width and a height of at least 1, got 10 and 0"),
        ('"file_name": "a.png", ', "", "10: expected 'file_name' of type str, got None"),
        ('"name": "plate"', '"name": 1', "17: expected 'name' of type str, got 1"),
        ('"name": "plate"', '"name": []', "17: expected 'name' of type str, got []"),
        ("[1, 1, 0, 2]", "null", "7: expected 'bbox' of type list, got None"),
        ("[1, 1, 0, 2]", "[1, 1, 0]", "7: expected finite numbers x y w h, got '1 1 0'"),
        ("[1, 1, 0, 2]", "[1, 1, NaN, 2]", "7: expected finite numbers x y w h, got '1 1 nan 2'"),
        ("[1, 1, 0, 2]", "[1, 1, 1e40, 2]", "7: expected finite numbers x y w h, got '1 1 1e+40 2'"),
        ("[1, 1, 0, 2]", '[1, 1, "0", 2]', "7: expected finite numbers x y w h, got \"1 1 '0' 2\""),
        ("[1, 1, 0, 2]", "[1, 1, true, 2]", "7: expected finite numbers x y w h, got '1 1 True 2'"),
        ("[1, 1, 0, 2]", "[1, 1, -1, 2]", "7: expected sides of at least 0, got -1 and 2"),
        ('"iscrowd": 0', '"iscrowd": 2', "6: expected 'iscrowd' 0 or 1, got 2"),
        ('"parent_id": 8', '"parent_id": [8]', "4: expected 'parent_id' of type int, got [8]"),
        ('"parent_id": 8', '"parent_id": 9', "4: expected 'parent_id' of another object of the image, got 9"),
        ('"parent_id": 8', '"parent_id": 7', "4: expected 'parent_id' of another object of the image, got 7"),
        ('"parent_id": 8', '"parent_id": 6', "4: expected 'parent_id' of another object of the image, got 6"),
        ('"parent_id": 8', '"parent_id": 1', "4: expected 'parent_id' of another object of the image, got 1"),
    ],
)
def test_malformed_coco(tmp_path, old, new, place_and_message):
    assert COCO.count(old) == 1
    file = text_file(tmp_path / "a.json", COCO.replace(old, new))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}:{place_and_message}')}") as error:
        paired_data.read_coco(file)
    assert "\n" not in str(error.value)


def read_yolo(folder: Path) -> PairedData:
    return paired_data.read_yolo(folder, NAMES, {"plate": "car"}, labels=folder)


@pytest.mark.parametrize(
    ("read", "text", "place_and_message"),
    [
        (read_yolo, "0 .5 .5 1 1\n\n1 .5 .5 1", "3: expected finite numbers class cx cy w h, got '1 .5 .5 1'"),
        (read_yolo, "0 1 1 1 1 1", "1: expected finite numbers class cx cy w h, got '0 1 1 1 1 1'"),
        (read_yolo, "0 .5 .5 nan 1", "1: expected finite numbers class cx cy w h, got '0 .5 .5 nan 1'"),
        (read_yolo, "0 .5 -inf 1 1", "1: expected finite numbers class cx cy w h, got '0 .5 -inf 1 1'"),
        (read_yolo, "car .5 .5 1 1", "1: expected finite numbers class cx cy w h, got 'car .5 .5 1 1'"),
        (read_yolo, "2 .5 .5 1 1", "1: expected a class from 0 to 1, got 2"),
        (read_yolo, "-1 .5 .5 1 1", "1: expected a class from 0 to 1, got -1"),
        (read_yolo, "0.5 .5 .5 1 1", "1: expected a class from 0 to 1, got 0.5"),
        (read_yolo, "\r\n0 .5 .5 .1 -.2\r\n", "2: expected sides of at least 0, got 0.1 and -0.2"),
        (
            read_yolo,
            "0 320 240 200 100",
            "1: expected cx cy w h from 0 to 1, in sides of the image, got '320 240 200 100'",
        ),
        (
            read_yolo,
            "0 .5 .5 1 1\n1 1.02 .5 .1 .1",
            "2: expected cx cy w h from 0 to 1, in sides of the image, got '1.02 .5 .1 .1'",
        ),
        (
            read_yolo,
            "0 .5 -.02 .1 .1",
            "1: expected cx cy w h from 0 to 1, in sides of the image, got '.5 -.02 .1 .1'",
        ),
        (read_yolo, "0 .5 .5 1.2 1", "1: expected cx cy w h from 0 to 1, in sides of the image, got '.5 .5 1.2 1'"),
        (read_yolo, "0 .5 .5 1 50", "1: expected cx cy w h from 0 to 1, in sides of the image, got '.5 .5 1 50'"),
        (read_yolo, b"\n\n0 \xe9", "3: expected UTF-8, got the byte 0xe9"),
        (read_yolo, b"\xef\xbb\xbf\n0 \xe9", "2: expected UTF-8, got the byte 0xe9"),
        (paired_data.read_ufpr_alpr, "", "1: expected the position of the vehicle up to here, got none"),
        (
            paired_data.read_ufpr_alpr,
            "camera: x\n\tposition_vehicle: 1 2 3 4\nposition_plate: 1 2 3 4\n",
            "3: expected the position of the vehicle up to here, got none",
        ),
        (
            paired_data.read_ufpr_alpr,
            UFPR.replace("corners", "corner"),
            "7: expected the position of the plate up to here, got none",
        ),
        (
            paired_data.read_ufpr_alpr,
            UFPR + "position_plate: 1 2 3 4",
            "8: expected one position of the plate, got another",
        ),
        (
            paired_data.read_ufpr_alpr,
            UFPR + "position_vehicle: 1 2 3 4",
            "8: expected one position of the vehicle, got another",
        ),
        (
            paired_data.read_ufpr_alpr,
            UFPR.replace(" 50 40", " 50"),
            "2: expected finite numbers x y w h, got '20 10 50'",
        ),
        (
            paired_data.read_ufpr_alpr,
            UFPR.replace("29,45", ""),
            "6: expected finite numbers x1 y1 x2 y2 x3 y3 x4 y4, got '30 40 45 41 44 46'",
        ),
        (
            paired_data.read_ufpr_alpr,
            UFPR.replace("50 40", "50 -40"),
            "2: expected sides of at least 0, got 50 and -40",
        ),
        (
            paired_data.read_openalpr,
            "a.png\t1\t2\t3\t4\tX\r\na.png 1 2 3 4 X\r\n",
            "2: expected file, x, y, w, h and plate between tabs, got 'a.png 1 2 3 4 X'",
        ),
        (paired_data.read_openalpr, "a.png\t1\t2\t3\tx\tX", "1: expected finite numbers x y w h, got '1 2 3 x'"),
        (paired_data.read_openalpr, "a.png\t1\t2\t-3\t4\tX", "1: expected sides of at least 0, got -3 and 4"),
        (paired_data.read_openalpr, "b.png\t1\t2\t3\t4\tX", "1: expected an image beside the file, got 'b.png'"),
    ],
)
def test_malformed_text(tmp_path, read, text, place_and_message):
    image_file(tmp_path / "a.png")
    file = text_file(tmp_path / "a.txt", text)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}:{place_and_message}')}$"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (CCPD.replace("-15.jpg", ".jpg"), "expected a name area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur, got "),
        (CCPD.replace("-4&5_34", "-4_5_34"), "expected a name area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur"),
        ("ccpd_base/1005.jpg", "expected a name area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur, got another"),
        ("ccpd_np/a1005.jpg", "expected a name area-tilt-x1&y1_x2&y2-vertices-plate-brightness-blur, got another"),
        (CCPD.replace("-4&5_34", "-4&5_3"), "expected sides of at least 0, got -1 and 10"),
    ],
)
def test_malformed_ccpd(tmp_path, name, message):
    file = image_file(tmp_path / name)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {message}')}"):
        paired_data.read_ccpd(tmp_path)


@pytest.mark.parametrize(
    "read", [read_yolo, paired_data.read_ufpr_alpr, paired_data.read_ccpd, paired_data.read_openalpr]
)
def test_folders_without_images(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path / 'none'}: expected a folder, got none$"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected at least one file .*, got none$"):
        read(tmp_path)


def test_missing_files(tmp_path):
    file = image_file(tmp_path / "images" / "a.png")
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{tmp_path / 'a.json'}'$"):
        paired_data.read_coco(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path / 'labels'}: expected a folder, got none$"):
        paired_data.read_yolo(file.parent, NAMES, {"plate": "car"})
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{file.with_suffix('.txt')}'$"):
        paired_data.read_ufpr_alpr(tmp_path)
    text_file(tmp_path / "a.json", COCO)
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path / 'none'}: expected a folder, got none$"):
        paired_data.read_coco(tmp_path / "a.json", tmp_path / "none")
    text_file(tmp_path / "a.txt", "\n")
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected at least one line of an image, got none$"):
        paired_data.read_openalpr(tmp_path)


def test_a_file_that_is_no_image(tmp_path):
    file = text_file(tmp_path / "a.png", "text")
    with pytest.raises(ValueError, match=f"^{file}: expected an image, got a file that Pillow does not know$"):
        read_yolo(tmp_path)


def test_a_file_that_is_no_image_beside_ultralytics(tmp_path, monkeypatch):
    """Ultralytics replaces Pillow's `open` by one that looks for a further decoder, and fails when there is none."""
    file = text_file(tmp_path / "a.png", "text")
    pillow_open = Image.open

    def open_with_a_missing_decoder(*arguments):
        try:
            return pillow_open(*arguments)
        except UnidentifiedImageError:
            raise ModuleNotFoundError("No module named 'pi_heif'", name="pi_heif") from None

    monkeypatch.setattr(Image, "open", open_with_a_missing_decoder)
    with pytest.raises(ValueError, match=f"^{file}: expected an image, got a file that Pillow does not know$"):
        read_yolo(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_size_of_an_image_that_is_turned(tmp_path, suffix):
    """As everybody sees it, for 5 to 8 the height of what is stored first."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image_file(tmp_path / f"{orientation}.{suffix}", exif=exif)
    text_file(tmp_path / "6.txt", "0 0.5 0.25 0.2 0.1")
    images = read_yolo(tmp_path).images
    assert [image[1:3] for image in images] == [(100, 50)] * 4 + [(50, 100)] * 4
    torch.testing.assert_close(images[5].boxes, torch.tensor([[20.0, 20, 30, 30]]))


def test_size_of_an_image_that_is_turned_in_every_reader(tmp_path):
    for name in (f"ccpd/{CCPD}", "openalpr/a.jpg", "ufpr/a.jpg"):
        image_file(tmp_path / name, exif=TURNED)
    text_file(tmp_path / "openalpr" / "a.txt", "a.jpg\t10\t20\t30\t5\tAB 123\n")
    text_file(tmp_path / "ufpr" / "a.txt", UFPR)
    for folder in ("ccpd", "openalpr", "ufpr_alpr"):
        data = getattr(paired_data, f"read_{folder}")(tmp_path / folder.removesuffix("_alpr"))
        assert data.images[0][1:3] == (50, 100)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_size_of_an_image_whose_orientation_is_odd(tmp_path):
    """At the end of a PNG it counts, what cannot be understood does not; neither is a reason to refuse an image."""
    exif = TURNED.tobytes().removeprefix(b"Exif\0\0")
    plain = image_file(tmp_path / "a.png").read_bytes()
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    text_file(tmp_path / "a.png", plain[:-12] + chunk + plain[-12:])
    for name, broken in (
        ("b.jpg", b"Exif\0\0nothing"),
        ("c.jpg", TURNED.tobytes()[:16]),
        ("d.jpg", b"Exif\0\0MM\0*\0"),
    ):
        image_file(tmp_path / name, exif=broken)
    assert [image[1:3] for image in read_yolo(tmp_path).images] == [(50, 100), *[(100, 50)] * 3]


def test_coco_size_that_is_not_that_of_the_image(tmp_path):
    """Images that are there are looked at; a size from before the turn is the most likely mistake, and is named."""
    file = text_file(tmp_path / "a.json", COCO)
    image_file(tmp_path / "a.png", (50, 100), exif=TURNED)
    image_file(tmp_path / "sub" / "b.png", (10, 20))
    assert [image[1:3] for image in paired_data.read_coco(file).images] == [(100, 50), (3, 4), (10, 20)]
    for size, exif, of_it in (
        ((100, 50), TURNED, "50 x 100 as it is shown, got 100 x 50, the size before its EXIF orientation turns it"),
        ((200, 100), None, "200 x 100, got 100 x 50"),
        ((50, 100), None, "50 x 100, got 100 x 50"),
    ):
        image_file(tmp_path / "a.png", size, exif=exif)
        message = f"{file}:10: expected the size of {tmp_path / 'a.png'}, {of_it}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            paired_data.read_coco(file)


def test_coco_images_that_pillow_does_not_open(tmp_path, monkeypatch):
    """Nothing is known of them but what is stated."""
    file = text_file(tmp_path / "a.json", COCO)
    text_file(tmp_path / "a.png", "a format of satellites")
    image_file(tmp_path / "none.png", (30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    assert [image[1:3] for image in paired_data.read_coco(file).images] == [(100, 50), (3, 4), (10, 20)]
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        ValueError, match=f"^{tmp_path / 'none.png'}: expected an image that Pillow opens, got one of which it says: "
    ):
        read_yolo(tmp_path)


def test_without_pillow(tmp_path, monkeypatch):
    image_file(tmp_path / "a.png", (7, 7))
    file = text_file(tmp_path / "a.json", COCO)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(paired_data.read_coco(file).images) == 3
    with pytest.raises(ImportError, match=r"^the size of an image is read by Pillow: pip install pillow$"):
        read_yolo(tmp_path)
