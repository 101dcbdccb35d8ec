"""Malformed files of paired data: each error names the file, the line and what was expected."""

import re

import pytest
from PIL import Image, UnidentifiedImageError

from icr_kernels import paired_data
from paired_files import CCPD, COCO, NAMES, UFPR, image_file, read_yolo, text_file


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
