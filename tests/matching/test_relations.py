"""Which classes hang on which: from the boxes, labels and images of a batch to the anchor object of every box."""

import numpy as np
import pytest
import torch

import icr_kernels as icr
from inputs import device_of, every_backend

NAMES = ["car", "plate", "truck", "wheel", "carrier", "person"]
CAR, PLATE, TRUCK, WHEEL, CARRIER, PERSON = range(6)

# Image, label, box.
BATCH = [
    (0, CAR, (0, 0, 10, 10)),
    (0, PLATE, (4, 8, 6, 9)),
    (0, WHEEL, (0, 7, 3, 10)),
    (0, CARRIER, (-2, -2, 40, 14)),
    (0, TRUCK, (20, 0, 30, 12)),
    (0, PLATE, (24, 10, 26, 11)),
    (0, PLATE, (50, 50, 52, 51)),
    (1, CAR, (3, 7, 7, 10)),
    (1, PLATE, (4, 8, 6, 9)),
    (1, WHEEL, (20, 0, 22, 2)),
    (1, PERSON, (0, 0, 30, 30)),
]


def batch(device: str = "cpu") -> tuple[torch.Tensor, ...]:
    image, labels, boxes = zip(*BATCH, strict=True)
    return (
        torch.tensor(boxes, dtype=torch.float32, device=device),
        torch.tensor(labels, device=device),
        torch.tensor(image, device=device),
    )


@every_backend
def test_parts_of_their_own_wholes(backend):
    relations = icr.Relations({"plate": ("car", "truck"), "wheel": "car"}, NAMES)
    index = relations.anchor_index(*batch(device_of(backend)), backend=backend)
    assert index.dtype == torch.int64
    assert index.tolist() == [-1, 0, 0, -1, -1, 4, -1, -1, 7, -1, -1]


@every_backend
def test_a_chain_of_relations(backend):
    """The wheel of a car on a carrier: each belongs to the next, not to the last."""
    relations = icr.Relations({"wheel": ("car",), "car": ("carrier",), "truck": ("carrier",)}, NAMES)
    index = relations.anchor_index(*batch(device_of(backend)), backend=backend)
    assert index.tolist() == [3, -1, 0, -1, 3, -1, -1, -1, -1, -1, -1]


@every_backend
def test_a_class_that_is_its_own_whole(backend):
    """Boxes in boxes: each belongs to the smallest one that contains it, none to itself."""
    boxes = torch.tensor([[0.0, 0, 16, 16], [1, 1, 9, 9], [2, 2, 4, 4], [2, 2, 4, 4]], device=device_of(backend))
    labels = torch.zeros(4, dtype=torch.int64, device=boxes.device)
    relations = icr.Relations({"box": "box"}, ["box"])
    assert relations.anchor_index(boxes, labels, backend=backend).tolist() == [-1, 0, 1, 1]


@every_backend
def test_known_pairs_take_precedence(backend):
    relations = icr.Relations({"plate": ("car", "truck")}, NAMES)
    boxes, labels, image = batch(device_of(backend))
    parent_idx = torch.full_like(labels, -1)
    parent_idx[1], parent_idx[5], parent_idx[6], parent_idx[8] = 4, -2, 3, 10**6
    parent_idx[2] = 0  # a wheel is no part here
    index = relations.anchor_index(boxes, labels, image, parent_idx=parent_idx.int(), backend=backend)
    assert index.tolist() == [-1, 4, -1, -1, -1, -1, 3, -1, 7, -1, -1]


@every_backend
def test_padding_and_unnamed_labels(backend):
    boxes, labels, image = batch(device_of(backend))
    relations = icr.Relations({"plate": "car"}, {CAR: "car", PLATE: "plate"})
    image[1], labels[8] = -1, -1
    known = torch.full_like(labels, 0)
    assert relations.anchor_index(boxes, labels.int(), image.int(), backend=backend).tolist() == [-1] * len(BATCH)
    index = relations.anchor_index(boxes, labels, image, parent_idx=known, backend=backend)
    assert index.tolist() == [-1, -1, -1, -1, -1, 0, 0, -1, -1, -1, -1]


@every_backend
def test_least_containment_and_formats(backend):
    boxes = torch.tensor([[0.0, 0, 10, 10], [8, 0, 4, 1]], device=device_of(backend))
    labels = torch.tensor([CAR, PLATE], device=boxes.device)
    for least, expected in ((0.5, 0), (0.6, -1)):
        relations = icr.Relations({"plate": "car"}, NAMES, min_containment=least)
        assert relations.anchor_index(boxes, labels, box_format="xywh", backend=backend).tolist() == [-1, expected]


def test_labels_of_other_whole_numbers():
    """NumPy's, as data frames have them."""
    relations = icr.Relations({"plate": "car"}, {np.int64(CAR): "car", np.uint8(PLATE): "plate"})
    assert relations.anchor_index(*batch()).tolist() == [-1, 0, -1, -1, -1, -1, -1, -1, 7, -1, -1]


@every_backend
def test_nothing(backend):
    relations = icr.Relations({"plate": "car"}, NAMES)
    device = device_of(backend)
    empty = torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    assert relations.anchor_index(*empty, backend=backend).shape == (0,)


@every_backend
def test_in_the_loss(backend):
    """The whole way: the table of anchor objects is the ground truth itself."""
    boxes, labels, image = batch(device_of(backend))
    index = icr.Relations({"plate": ("car", "truck")}, NAMES).anchor_index(boxes, labels, image, backend=backend)
    pred = boxes + torch.tensor([20.0, 0, 20, 0], device=boxes.device)
    penalty = icr.icr_terms(pred, boxes, boxes, anchor_index=index, backend=backend).penalty
    # Moved by 20, the plates of the cars leave them, that of the truck too; other boxes have no penalty.
    assert penalty.nonzero().flatten().tolist() == [1, 5, 8]


def test_repr_says_what_belongs_to_what():
    relations = icr.Relations({"plate": ["car", "truck"], "wheel": "car"}, NAMES)
    assert repr(relations) == "Relations({'plate': ('car', 'truck'), 'wheel': ('car',)}, min_containment=0.5)"


@pytest.mark.parametrize(
    ("pairs", "names", "options", "error", "message"),
    [
        ({"plate": "bus"}, NAMES, {}, ValueError, "pairs: expected classes among car, plate, truck, .*, got 'bus'"),
        ({"licence": "car"}, NAMES, {}, ValueError, "pairs: expected classes among .*, got 'licence'"),
        ({"plate": ()}, NAMES, {}, ValueError, "pairs: expected the wholes of 'plate', got none"),
        ({}, NAMES, {}, ValueError, "pairs: expected at least one part and its whole, got none"),
        (["plate"], NAMES, {}, TypeError, "pairs: expected a mapping from part to whole, got list"),
        ({"a": "b"}, "ab", {}, TypeError, "names: expected a sequence of names or a mapping .*, got str"),
        (
            {"a": "b"},
            ["a", "b", "a"],
            {},
            ValueError,
            "names: expected different names, got 'a' for the labels 0 and 2",
        ),
        ({"a": None}, ["a", "b"], {}, TypeError, "pairs: expected the names of classes, got None"),
        ({0: "b"}, ["a", "b"], {}, TypeError, "pairs: expected the names of classes, got 0"),
        ({"a": ["b", 1]}, ["a", "b"], {}, TypeError, "pairs: expected the names of classes, got 1"),
        # As JSON has it; a mapping the other way round; labels in place of names.
        ({"a": "b"}, {"0": "a", "1": "b"}, {}, TypeError, "names: expected whole numbers as the labels .*, got '0'"),
        ({"a": "b"}, {"a": 0, "b": 1}, {}, TypeError, "names: expected whole numbers as the labels .*, got 'a'"),
        ({"a": "b"}, [0, 1], {}, TypeError, "names: expected the name of label 0 as a string, got int"),
        ({"a": "b"}, ["a", "b"], {"min_containment": 2}, ValueError, "min_containment: expected a number from 0 to 1"),
    ],
)
def test_errors(pairs, names, options, error, message):
    with pytest.raises(error, match=message):
        icr.Relations(pairs, names, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"boxes": torch.ones(2, 11, 4)}, ValueError, r"boxes: expected boxes of shape \(N, 4\), got \(2, 11, 4\)"),
        ({"labels": torch.ones(3).long()}, ValueError, r"labels: expected one number for each box of boxes, \(11,\)"),
        ({"labels": torch.ones(11)}, TypeError, "labels: expected dtype int64, int32, got float32"),
        ({"labels": None}, TypeError, "labels: expected a tensor, got NoneType"),
        ({"image": torch.ones(11)}, TypeError, "image: expected dtype int64, int32, got float32"),
        ({"parent_idx": torch.ones(10).long()}, ValueError, "parent_idx: expected one number for each box of boxes"),
        ({"image": torch.ones(11).long().to("meta")}, ValueError, "image: expected a tensor on cpu, where boxes is"),
    ],
)
def test_errors_of_a_batch(options, error, message):
    arguments = dict(zip(("boxes", "labels", "image"), batch(), strict=True))
    with pytest.raises(error, match=message):
        icr.Relations({"plate": "car"}, NAMES).anchor_index(**{**arguments, **options})
