"""Generated scenes: their labels against the geometry of what was painted, their noise, their files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from frameworks import need

need("cv2")

import icr_kernels as icr  # noqa: E402
from icr_kernels.paired_data import read_coco, read_yolo  # noqa: E402
from icr_kernels.relations import NO_WHOLE  # noqa: E402
from studies import scenes  # noqa: E402
from studies.scenes import CAR, NAMES, PAIRS, PLATE, LabelNoise, Labels, __main__, viewer  # noqa: E402
from studies.scenes.drawing import Canvas, Vehicle  # noqa: E402

GREY = (100, 100, 100)
HALF = 0.5  # of a pixel: the outermost of a polygon are half covered


def painted(*covers: tuple[float, float, float, float]) -> Labels:
    """A car from (10, 20) to (50, 60) with a plate from (24, 44) to (36, 48), and trucks over it."""
    canvas = Canvas(80)
    canvas.rectangle(20, 40, 80, 80, GREY, 1)
    canvas.rectangle(48, 88, 24, 8, GREY, 1, 1)
    vehicles = [Vehicle("car", 20, 120, 80, 80, 0.0, 1)]
    drawn = [int((canvas.vehicles == 1).sum())]
    plates = [(1, int((canvas.plates == 1).sum()))]
    for number, (x, y, w, h) in enumerate(covers, start=2):
        canvas.rectangle(2 * x, 2 * y, 2 * w, 2 * h, GREY, number)
        vehicles.append(Vehicle("truck", 2 * x, 2 * (y + h), 2 * w, 2 * h, 0.0, 0))
        drawn.append(int((canvas.vehicles == number).sum()))
    return scenes._labels(canvas, vehicles, drawn, plates)


def test_boxes_are_around_what_is_seen():
    boxes, labels, parents = painted()
    assert labels.tolist() == [CAR, PLATE] and parents.tolist() == [NO_WHOLE, 0]
    assert np.abs(boxes - [[10, 20, 50, 60], [24, 44, 36, 48]]).max() <= HALF


def test_what_is_covered_is_not_part_of_the_box():
    boxes, labels, parents = painted((30, 10, 40, 60))
    assert labels.tolist() == [CAR, 1]  # a plate of which half is hidden has no label
    assert np.abs(boxes - [[10, 20, 30, 60], [30, 10, 70, 70]]).max() <= HALF
    boxes, labels, parents = painted((33, 10, 40, 60))
    assert labels.tolist() == [CAR, 1, PLATE] and parents.tolist() == [NO_WHOLE, NO_WHOLE, 0]
    assert abs(boxes[2][2] - 33) <= HALF


def test_a_plate_whose_vehicle_is_hidden_has_no_whole():
    _, labels, parents = painted((0, 0, 80, 43), (0, 49, 80, 30), (0, 30, 23, 30), (37, 30, 40, 30))
    assert labels.tolist()[-1] == PLATE and parents[-1] == NO_WHOLE and CAR not in labels


def test_scenes_have_what_they_promise():
    """Plates that are mostly under 16 pixels, inside their vehicles; some vehicles without one, some with several."""
    plates, shares, counts = [], [], []
    for number in range(40):
        picture, (boxes, labels, parents) = scenes.render(5, number, 320)
        assert picture.shape == (320, 320, 3) and picture.std() > 5
        assert (boxes >= 0).all() and (boxes <= 320).all()
        for row in np.flatnonzero(labels == PLATE):
            sides = boxes[row, 2:] - boxes[row, :2]
            plates.append(np.sqrt(sides.prod()))
            if parents[row] >= 0:
                pair = torch.from_numpy(boxes[[row, parents[row]]])
                shares.append(icr.icr_terms(pair[:1], pair[:1], pair[1:]).containment.item())
                assert labels[parents[row]] != PLATE
        counts += [int((parents == row).sum()) for row in np.flatnonzero(labels != PLATE)]
    assert np.mean(np.array(plates) < 16) > 0.6
    assert min(shares) == pytest.approx(1) and len(shares) > 0.9 * len(plates)
    assert {0, 1, 2} <= set(counts)


def test_seeds():
    (picture, labels), (again, same), (other, _) = (scenes.render(*each) for each in ((1, 2), (1, 2), (2, 2)))
    assert (picture == again).all() and (labels.boxes == same.boxes).all()
    assert (picture != other).mean() > 0.5


def many(count: int) -> Labels:
    """Vehicles of 100 x 80, in each a plate of 20 x 10."""
    boxes = np.array([[100, 100, 200, 180], [140, 150, 160, 160]] * count, np.float64)
    parents = np.array([[NO_WHOLE, 2 * row] for row in range(count)]).ravel()
    return Labels(boxes, np.array([CAR, PLATE] * count), parents)


def test_jitter():
    exact = many(2000)
    boxes = scenes.spoilt(exact, LabelNoise(jitter=0.1), 400, np.random.default_rng(0)).boxes
    sides = exact.boxes[:, 2:] - exact.boxes[:, :2]
    moved = ((boxes - exact.boxes)[:, :2] + (boxes - exact.boxes)[:, 2:]) / 2 / sides
    assert moved.std(0) == pytest.approx([0.1, 0.1], rel=0.1) and abs(moved.mean()) < 0.01
    assert np.log((boxes[:, 2:] - boxes[:, :2]) / sides).std(0) == pytest.approx([0.1, 0.1], rel=0.1)


def test_misses():
    """Who has lost its vehicle has no whole; who has not keeps its own, wherever that is now."""
    exact = many(2000)
    exact.boxes[:] += np.arange(2000).repeat(2)[:, None] / 100  # each pair in a place of its own
    found = scenes.spoilt(exact, LabelNoise(misses=0.3), 400, np.random.default_rng(0))
    assert len(found.boxes) == pytest.approx(0.7 * 4000, rel=0.05)
    plates = found.labels == PLATE
    paired = plates & (found.parents >= 0)
    assert paired.sum() / plates.sum() == pytest.approx(0.7, abs=0.05)
    offset = found.boxes[paired] - found.boxes[found.parents[paired]]
    assert np.allclose(offset, [[40, 50, -40, -20]])


def test_noise_where_there_is_little_to_spoil():
    """An image with one vehicle, and one with nothing."""
    for count in (0, 1):
        exact = Labels(*(values[:count] for values in many(1)))
        found = scenes.spoilt(exact, LabelNoise(beyond=1), 400, np.random.default_rng(0))
        assert (found.boxes == exact.boxes).all() and found.parents.tolist() == [NO_WHOLE] * count


def test_beyond():
    exact = many(500)
    found = scenes.spoilt(exact, LabelNoise(beyond=0.4), 400, np.random.default_rng(0))
    plates, cars = (torch.from_numpy(found.boxes[found.labels == label]) for label in (PLATE, CAR))
    inside = icr.icr_terms(plates, plates, cars).containment
    moved = inside < 0.999
    assert moved.double().mean().item() == pytest.approx(0.4, abs=0.07)
    assert ((inside[moved] >= 0.3 - 1e-6) & (inside[moved] <= 0.7 + 1e-6)).all()
    assert (found.boxes[found.labels == CAR] == exact.boxes[0]).all()


def test_files(tmp_path):
    """Both kinds of labels say the same, and noise spoils no picture."""
    noise = LabelNoise(0.05, 0.3, 0.2)
    data = scenes.write(tmp_path / "exact", "train", 6, size=160, seed=3)
    spoilt = scenes.write(tmp_path / "noisy", "train", 6, size=160, seed=3, noise=noise)
    coco = read_coco(tmp_path / "exact/annotations/train.json")
    yolo = read_yolo(tmp_path / "exact/images/train", NAMES, PAIRS)
    assert coco.names == yolo.names == data.names == NAMES and len(coco.images) == 6
    for exact, noisy, first, second in zip(data.images, spoilt.images, coco.images, yolo.images, strict=True):
        assert exact.file.read_bytes() == noisy.file.read_bytes()
        assert first.file.resolve() == second.file.resolve() == exact.file.resolve()
        for other in (first, second):
            torch.testing.assert_close(other.boxes, exact.boxes, atol=1e-3, rtol=0)
            assert torch.equal(other.labels, exact.labels)
        assert torch.equal(first.parent_idx, exact.parent_idx)
    rows, fewer = (sum(len(image.boxes) for image in each.images) for each in (data, spoilt))
    assert fewer < rows


def test_viewer(tmp_path):
    """Boxes and the line between a plate and its car, in the colours of their classes, at their places."""
    black = np.zeros((40, 40, 3), np.uint8)
    boxes = torch.tensor([[4.0, 4.0, 36.0, 36.0], [8.0, 28.0, 16.0, 32.0]])
    labels, parents = torch.tensor([CAR, PLATE]), torch.tensor([-1, 0])
    picture = viewer.labelled(black, boxes, labels, parents, scale=2)
    assert picture.shape == (80, 80, 3)
    assert tuple(picture[8, 40]) == viewer.COLOURS[CAR] and tuple(picture[56, 20]) == viewer.COLOURS[PLATE]
    assert picture[50, 32].any() and not picture[50, 60].any()
    found = viewer.Detections(boxes, torch.tensor([0.9, 0.1]), labels)
    picture = viewer.detected(black, found, scale=1)
    assert picture[4, 20].any() and not picture[28, 12].any()
    sheet = viewer.contact_sheet([picture] * 5, 2)
    assert sheet.shape == (3 * 44, 2 * 44, 3) and (sheet[-40:, -40:] == 255).all()


def test_images_that_are_turned(tmp_path):
    """A viewer, and so a detector, gets them as they are read: at the place of the label is what was labelled."""
    Image = pytest.importorskip("PIL.Image")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[30:34, 10:20] = 255  # upright, 40 x 80: x from 6 to 10, y from 10 to 20
    (tmp_path / "images").mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "a.png", exif=exif)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("2 0.2 0.1875 0.1 0.125\n")
    (image,) = read_yolo(tmp_path / "images", NAMES, PAIRS).images
    picture = viewer.read(image.file)
    assert picture.shape[:2] == (image.height, image.width) == (80, 40)
    assert image.boxes.tolist() == [[6, 10, 10, 20]]
    assert picture[10:20, 6:10].all() and picture.any(2).sum() == 4 * 10


def test_contact_sheet_of_pictures_of_several_sizes():
    """Upright ones and others, each at the upper left of its cell."""
    sheet = viewer.contact_sheet([np.zeros(shape, np.uint8) for shape in ((40, 80, 3), (80, 40, 3), (20, 20, 3))], 2)
    assert sheet.shape == (2 * 84, 2 * 84, 3)
    black = np.full(sheet.shape, 255, np.uint8)
    black[:40, :80] = black[:80, 84:124] = black[84:104, :20] = 0
    assert (sheet == black).all()


def test_commands(tmp_path, capsys):
    assert __main__.main(["write", str(tmp_path), "--train", "3", "--val", "2", "--size", "96", "--misses", "0.5"]) == 0
    assert len(list((tmp_path / "images/train").iterdir())) == 3 and len(list((tmp_path / "labels/val").iterdir())) == 2
    assert __main__.main(["view", str(tmp_path / "annotations/train.json"), str(tmp_path / "sheet.png")]) == 0
    assert viewer.read(tmp_path / "sheet.png").any()
    with pytest.raises(FileNotFoundError, match=r"none\.png: expected an image, it is missing"):
        viewer.read(tmp_path / "none.png")


def test_names_of_any_kind_in_the_yaml(tmp_path):
    """YAML would read these as a truth value, a mapping, a comment, nothing and a number."""
    import yaml

    names = ["no", "truck: big", "#1", "~", "7", 'Straße "x"']
    scenes.write_yaml(tmp_path, names)
    document = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert list(document["names"].values()) == names and Path(document["path"]) == tmp_path.resolve()
