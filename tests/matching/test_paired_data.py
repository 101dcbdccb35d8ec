"""Paired data as users have it: readers and writers."""

import json
import re
from pathlib import Path

import pytest
import torch

import icr_kernels as icr
from icr_kernels import paired_data
from icr_kernels.paired_data import PairedData, PairedImage
from paired_files import CAR, CCPD, COCO, NAMES, PLATE, UFPR, content, image_file, read_yolo, sizes, text_file


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
