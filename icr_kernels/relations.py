"""Which classes are parts of which wholes, and from there to the anchor object of every box of a batch."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from . import arguments
from .matching import match_anchor_objects

# In a parent_idx: a part that is known to have no whole.
NO_WHOLE = -2


class Relations:
    """Parts and the wholes that they belong to, by the names of their classes.

    ::

        relations = Relations({"plate": ("car", "truck", "bus"), "wheel": "car", "car": "carrier"}, model.names)
        anchor_index = relations.anchor_index(boxes, labels, image)
        loss = icr_loss(pred, boxes[matched], boxes, anchor_index=anchor_index[matched])

    A part may be the whole of another part (a wheel of a car on a carrier), each is paired with its own whole only; and
    a class may be its own whole, then a box belongs to a larger one of its class.

    Args:
        pairs: to each part the name of its whole, or the names of all classes that can be it.
        names: the names of all classes: a sequence in the order of their labels, or a mapping from label to name.
        min_containment: a part of which no whole contains at least this share has no anchor object.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a class that is not among the names, a name that two classes have, no pairs, or a wrong number.
    """

    def __init__(
        self,
        pairs: Mapping[str, str | Sequence[str]],
        names: Sequence[str] | Mapping[int, str],
        *,
        min_containment: float = 0.5,
    ) -> None:
        labels = labels_of(names)
        if not isinstance(pairs, Mapping):
            raise TypeError(f"pairs: expected a mapping from part to whole, got {type(pairs).__name__}")
        if not pairs:
            raise ValueError("pairs: expected at least one part and its whole, got none")
        self.min_containment = arguments.number("min_containment", min_containment, 0, 1)
        self.pairs = {part: names_of_wholes(part, wholes) for part, wholes in pairs.items()}
        for part, wholes in self.pairs.items():
            if not wholes:
                raise ValueError(f"pairs: expected the wholes of {part!r}, got none")
            for name in (part, *wholes):
                if name not in labels:
                    raise ValueError(f"pairs: expected classes among {', '.join(labels)}, got {name!r}")
        self._wholes = {labels[part]: [labels[whole] for whole in wholes] for part, wholes in self.pairs.items()}

    def __repr__(self) -> str:
        pairs = ", ".join(f"{part!r}: {wholes!r}" for part, wholes in self.pairs.items())
        return f"Relations({{{pairs}}}, min_containment={self.min_containment!r})"

    def is_part(self, labels: Tensor) -> Tensor:
        """Which labels are of a class that belongs to another: bool, of the shape of ``labels``."""
        return are_of(labels, self._wholes)

    def anchor_index(
        self,
        boxes: Tensor,
        labels: Tensor,
        image: Tensor | None = None,
        *,
        parent_idx: Tensor | None = None,
        eps: float = 1e-7,
        box_format: str = "xyxy",
        backend: str | None = None,
    ) -> Tensor:
        """The row of the anchor object of every box of a batch, to be given to `icr_loss` with ``boxes`` as its table.

        Args:
            boxes: (N, 4), the ground truth of all images of the batch, one after the other.
            labels: (N,) int64 or int32, their classes. A label without a name is no part and no whole.
            image: (N,) int64 or int32, the image of each box; None: all are of one. A negative number: a box to ignore.
            parent_idx: (N,) int64 or int32, pairs that are known: the row of the whole in ``boxes``. They take
                precedence over geometry: -1 (and any other number outside the table but -2) is a pair that is not known
                and is looked for, -2 a part that is known to have no whole. Ignored for boxes that are no parts.
            eps, box_format, backend: as of `match_anchor_objects`.

        Returns:
            (N,) int64: the row of each part's whole; -1 for a part without one and for every other box.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: a wrong shape, device or name.
            RuntimeError: the backend that was asked for cannot run here.
        """
        arguments.labelled(boxes, labels, image, parent_idx)
        image = torch.zeros_like(labels) if image is None else image
        index = torch.full_like(labels, -1, dtype=torch.int64)
        for part, wholes in self._wholes.items():
            of_part, of_whole = labels == part, are_of(labels, wholes)
            found = match_anchor_objects(
                boxes,
                boxes,
                part_group=torch.where(of_part, image, -1),
                whole_group=torch.where(of_whole, image, -1),
                min_containment=self.min_containment,
                larger=part in wholes,
                eps=eps,
                box_format=box_format,
                backend=backend,
            ).anchor_index
            index = torch.where(of_part, found, index)
        if parent_idx is not None:
            known = self.is_part(labels) & (parent_idx >= 0) & (parent_idx < len(boxes)) & (image >= 0)
            index = torch.where(known, parent_idx.to(torch.int64), index)
            index = torch.where(parent_idx == NO_WHOLE, -1, index)
        return index


def names_of_wholes(part: str, wholes: str | Iterable[str]) -> tuple[str, ...]:
    """Those of one of the pairs, in which a single name may stand for itself."""
    names = (wholes,) if isinstance(wholes, str) or not isinstance(wholes, Iterable) else tuple(wholes)
    for name in (part, *names):
        if not isinstance(name, str):
            raise TypeError(f"pairs: expected the names of classes, got {name!r}")
    return names


def are_of(labels: Tensor, classes: Iterable[int]) -> Tensor:
    """Which labels are one of the classes."""
    return torch.stack([labels == label for label in classes]).any(0)


def labels_of(names: Sequence[str] | Mapping[int, str]) -> dict[str, int]:
    if isinstance(names, str) or not isinstance(names, (Sequence, Mapping)):
        raise TypeError(
            f"names: expected a sequence of names or a mapping from label to name, got {type(names).__name__}"
        )
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    labels: dict[str, int] = {}
    for label, name in pairs:
        if isinstance(label, bool) or not isinstance(label, Integral):
            raise TypeError(
                f"names: expected whole numbers as the labels of a mapping from label to name, got {label!r}"
            )
        if not isinstance(name, str):
            raise TypeError(f"names: expected the name of label {label} as a string, got {type(name).__name__}")
        if name in labels:
            raise ValueError(f"names: expected different names, got {name!r} for the labels {labels[name]} and {label}")
        labels[name] = int(label)
    return labels
