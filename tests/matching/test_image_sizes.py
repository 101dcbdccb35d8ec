"""The size of an image as it is shown: turned ones, odd ones, and sizes that are stated and wrong."""

import re
import struct
import sys
import zlib

import pytest
import torch
from PIL import Image

from icr_kernels import paired_data
from paired_files import CCPD, COCO, ORIENTATION, TURNED, UFPR, image_file, read_yolo, text_file


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
