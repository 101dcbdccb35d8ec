"""Paired data as users have it: readers, writers, and what is said of malformed files."""

import json
import re
import sys
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


def image_file(path: Path, size: tuple[int, int] = (100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1", size).save(path)
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


def test_yolo_does_not_overwrite_the_labels_of_another_image(tmp_path):
    image = random_data(tmp_path, 0).images[0]
    data = PairedData(("a", "b", "c"), [image._replace(file=Path(name)) for name in ("x/1.png", "2.png", "y/1.jpg")])
    with pytest.raises(ValueError, match=r"^data: expected images of different names, got 2 of '1'$"):
        paired_data.write_yolo(data, tmp_path / "labels")
    assert not (tmp_path / "labels").exists()


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


def test_without_pillow(tmp_path, monkeypatch):
    image_file(tmp_path / "a.png")
    file = text_file(tmp_path / "a.json", COCO)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(paired_data.read_coco(file).images) == 3
    with pytest.raises(
        ImportError, match=r"^the size of an image is read by Pillow: pip install icr-kernels\[train\]$"
    ):
        read_yolo(tmp_path)
