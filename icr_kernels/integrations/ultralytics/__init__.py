"""Ultralytics 8.0.201 to 8.4 and its forks: YOLO (8 to 13, 26 and other detectors of its kind) and RT-DETR.

Nothing of Ultralytics is changed and nothing of this package is stored: when a training run begins, a callback puts a
criterion around that of the model and of its moving average, and that criterion watches the stock one while it runs;
`accelerate` gives the stock one another assigner, and its heads another loss. Checkpoints load where this package is
not installed. docs/frameworks.md says which versions and forks were tried.
"""

import importlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from ... import arguments
from ...calls import Formula
from ...relations import Relations, names_of_wholes
from ...specifications import BoxLoss
from ...specifications import Penalty as PenaltyOfPairs
from ...variants import WEIGHTINGS
from ..handle import Handle, Record, framework, place_of
from ..uniform import LossFunction, UniformTerm
from . import ranks
from .assigner import TaskAlignedAssigner
from .start import EVENT, AcceleratedStart, BoxLossStart, Start, TermsStart
from .terms import Options, Penalty

__all__ = ["TaskAlignedAssigner", "accelerate", "enable_box_loss", "enable_icr", "enable_small_object_term"]

SMALL = 32.0


def enable_icr(
    model: Any,
    pairs: Mapping[str, str | Sequence[str]],
    *,
    weight: float = 0.5,
    penalty: str | PenaltyOfPairs = "containment",
    relative: bool = False,
    weighting: str = "uniform",
    replace_iou_loss: bool = False,
    iou_loss: str | BoxLoss | None = None,
    auxiliary: bool = True,
    denoising: bool = False,
    min_containment: float = 0.5,
    box_term: float = 0.0,
) -> Handle:
    """Adds the penalty to the box loss of every training run of this model that begins from now on.

    ::

        model = YOLO("yolo11n.pt")
        icr = enable_icr(model, {"plate": ("car", "truck", "bus")})
        model.train(data="plates.yaml", epochs=100)

    Anchor objects are found by geometry, batch by batch, among the ground-truth boxes of the image that the network
    sees, so mosaic and crops are no obstacle. The gradient of the penalty reaches the predicted boxes; which anchor
    point is assigned to which object stays Ultralytics' choice.

    Where the loss items of a version have names (8.4.120 is one, 8.4.60 is not) the term has a column of its own,
    ``icr_loss``, in the progress bar and in results.csv, in training and in validation, and ``box_loss`` is what it is
    without it. In older versions it is part of ``box_loss``, and for RT-DETR, whose items are fixed, of ``giou_loss``.

    A resumed run is a new model: call this again before ``model.train(resume=True)``. On several GPUs each process
    trains with the term, and the statistics stay there. Ultralytics before 8.4.140 starts them with nothing but the
    class of the trainer: there ``model.train`` makes a trainer whose class brings the term along, and one, or a loss of
    the uniform term, that is defined in the script itself is a ValueError before they are started. ``model.tune``
    starts programs that know nothing of this, and tunes the stock loss.

    Args:
        model: an `ultralytics.YOLO`, an `ultralytics.RTDETR` or a fork's model that detects, such as `YOLOv10` (not one
            that segments, not YOLO-World or YOLOE).
        pairs: to each part the name or names of its wholes, as the data set's yaml spells them.
        weight: of the penalty, in the unit of the CIoU loss (RT-DETR: of the GIoU loss): a mean penalty of 1 counts
            ``weight`` times as much as boxes without overlap, and ``box`` of the training arguments (RT-DETR: the
            gain of the GIoU loss) multiplies both.
        penalty, relative: as of `icr_loss`.
        weighting: "uniform": the mean over the predictions that are assigned to a part with an anchor object. "tal":
            weighted as the box loss weighs its terms, by the assigner's scores and over all predictions with a target
            (RT-DETR: the sum divided by their number). These scores grow with the overlap that is reached: early in
            training, and for small parts, they make the term a thousand times smaller.
        replace_iou_loss: the CIoU (RT-DETR: GIoU) loss of this package in place of the stock one: the same but for
            rounding and degenerate boxes. A model with another box loss, as forks have it, is refused.
        iou_loss: another loss of the boxes in place of the stock one, as `enable_box_loss` alone puts it there.
        auxiliary: RT-DETR: also at the outputs of the decoder's earlier layers and of the encoder.
        denoising: RT-DETR: also at the denoising queries.
        min_containment: a part of which no whole contains at least this share has no anchor object.
        box_term: the weight of the uniform term of the parts, as `enable_small_object_term` adds it for ``names=`` the
            parts, with a column of its own. A model has the terms of one of the two functions: the last call counts,
            and a warning says so.

    Returns:
        A `Handle`: statistics (of the training steps; of both heads of an end-to-end model), reset, disable.

    Raises:
        ImportError: ultralytics is missing, of a version that is not supported, or without what is hooked into.
        TypeError, ValueError: not such a model, or a wrong name or number. The classes are those of the data set, so a
            class that it lacks, ``single_cls=True``, and ``replace_iou_loss=True`` with another box loss, are a
            ValueError when training begins.
    """
    _check_model(model)
    # The names are known once the data set is; all else is checked now.
    mentioned = Relations(pairs, _mentioned(pairs), min_containment=min_containment)
    weight = arguments.number("weight", weight, 0)
    arguments.formula(*Formula(penalty=penalty, relative=relative))
    if iou_loss is not None:
        arguments.formula(*Formula(iou_loss))
        if replace_iou_loss:
            raise ValueError(f"replace_iou_loss: expected False, because iou_loss is {iou_loss!r}, got True")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    uniform = UniformTerm.of_parts(box_term, mentioned)
    formula = {"penalty": penalty, "relative": relative}
    added = Penalty(dict(pairs), min_containment, weight, formula, weighting)
    record = Record(mentioned, uniform)
    starts: list[Start] = [TermsStart("enable_icr", Options(added, uniform, auxiliary, denoising, record))]
    if replace_iou_loss or iou_loss is not None:
        # Before the terms: one that is refused leaves nothing behind.
        starts.insert(0, BoxLossStart("enable_icr", record, iou_loss))
    return _enable(model, record, *starts)


def enable_box_loss(model: Any, loss: str | BoxLoss) -> Handle:
    """Puts another loss of the boxes in the place of the stock one, whichever that is, in every training run of this
    model that begins from now on.

    ::

        model = YOLO("yolo11n.pt")
        enable_box_loss(model, BoxLoss("mpdiou", width=640, height=640, inner=0.7))
        model.train(data="plates.yaml", epochs=100)

    It is weighted as the stock one; its gain, its column in the log and the other losses stay what they are. It goes
    together with a term of `enable_icr` or `enable_small_object_term` and with `accelerate`, in any order. A model has
    one loss of the boxes: the last call counts, and where it is of another function a warning says so. Nothing of the
    model's weights and checkpoints changes, a resumed run needs another call, and every process of several GPUs trains
    with it, as with `enable_icr`.

    The running mean of a loss that is ``wise`` is of the predictions with a target, of each head and process on its own
    (RT-DETR: of all outputs together). It begins anew with a run, and validation leaves it alone.

    Args:
        model: as of `enable_icr`.
        loss: as `box_iou_loss` takes it: ``"siou"``, or a `BoxLoss`. Its parameters are in pixels of the image that the
            network sees: each prediction is brought there by its stride (RT-DETR: by ``imgsz``).

    Returns:
        A `Handle`, in whose statistics are ``steps`` and ``positives``.

    Raises:
        ImportError: ultralytics is missing, of a version that is not supported, or without what is hooked into.
        TypeError, ValueError: not such a model, or not such a loss.
    """
    _check_model(model)
    arguments.formula(*Formula(loss))
    record = Record(None)
    return _enable(model, record, BoxLossStart("enable_box_loss", record, loss))


def enable_small_object_term(
    model: Any,
    *,
    max_side: float | None = None,
    names: Iterable[str] | None = None,
    weight: float = 0.1,
    loss: str | BoxLoss | LossFunction = "iou",
    auxiliary: bool = True,
    denoising: bool = False,
) -> Handle:
    """Adds to the box loss of a model, in every training run that begins from now on, one of its small objects alone.

    ::

        model = YOLO("yolo11n.pt")
        enable_small_object_term(model)
        model.train(data="plates.yaml", epochs=100)

    Ultralytics weighs the box loss of each prediction by the assigner's score, which grows with the overlap that is
    reached: a small object that is not hit yet has next to no gradient. The term is ``weight`` times the plain mean of
    the loss over the predictions that are assigned to a small object. No other object has to do with it. What it does
    to detectors is measured in docs/evidence.md. ``weight=0`` is the stock loss.

    For YOLO the term has a column of its own, ``uniform_loss``, where the loss items of a version have names; in older
    versions it is part of ``box_loss``, and for RT-DETR of ``giou_loss``. A model has this or the terms of
    `enable_icr`: the last call counts, and a warning says so. As there, nothing of the model's weights and checkpoints
    changes, and a resumed run needs another call.

    Args:
        model: as of `enable_icr`.
        max_side: objects below this root of their area, in pixels of the image that the network sees (RT-DETR: of one
            of the size ``imgsz``). None: 32, COCO's bound of "small", or of any size if there are names.
        names: objects of these classes; None: of all. With max_side, those that are both.
        weight: in the unit of the CIoU loss (RT-DETR: of the GIoU loss): a mean loss of 1 counts ``weight`` times as
            much as boxes without overlap, and ``box`` of the training arguments multiplies both.
        loss: what `box_iou_loss` takes, but for one that is ``wise``, or a function of predictions and targets (...,
            4), corners in pixels (RT-DETR: cxcywh, normalised), that gives the loss of each (...). In the place of
            pairs that are not of the term it sees ordinary boxes, and what it makes of them does not count.
        auxiliary, denoising: as of `enable_icr`.

    Returns:
        A `Handle`, in whose statistics are ``chosen`` and ``mean_loss``.

    Raises:
        ImportError: ultralytics is missing, of a version that is not supported, or without what is hooked into.
        TypeError, ValueError: not such a model, or a wrong name or number. A class that the data set lacks is a
            ValueError when training begins.
    """
    _check_model(model)
    if names is None and max_side is None:
        max_side = SMALL
    uniform = UniformTerm.of_objects(weight, loss, names, max_side)
    record = Record(None, uniform)
    options = Options(None, uniform, auxiliary, denoising, record)
    return _enable(model, record, TermsStart("enable_small_object_term", options))


def accelerate(model: Any, *, criterion: bool = False) -> Handle:
    """Puts `TaskAlignedAssigner`, which makes no tensors of (images, boxes, points), in the place of Ultralytics' in
    every training run of this model that begins from now on; and on demand the whole loss of its heads.

    ::

        model = YOLO("yolo11n.pt")
        accelerate(model, criterion=True)
        model.train(data="plates.yaml", epochs=100)

    Each prediction is assigned to the object that it would be assigned to, with the same score, and the losses are the
    same; `TaskAlignedAssigner` says what ties and NaN make of that. When training begins, each assigner of the
    criterion (an end-to-end model has two) is compared with this one on a trial scene. One that assigns otherwise
    stays, and a warning says so: that of a fork, say, or of Ultralytics 8.4.0 to 8.4.127, which enlarges small boxes by
    another rule.

    With ``criterion`` a head's loss is `dense_detection_loss`, assignment included, with the options of the stock one:
    gains, weights of classes, both heads of an end-to-end model and their schedule. What it returns and logs is the
    stock one's but for rounding. Boxes are decoded and losses computed in float32 under autocast too, where the stock
    ones lose digits. It is compared with the stock one as well, losses and gradients. One that differs stays, and so
    does one of another class, with a box loss or a cross-entropy of another class, or whose assigner stays; a warning
    says which and why. While another takes the place of one of these in mid-run, the loss is the stock one.

    It goes together with `enable_icr` and its like, in any order. As there, nothing of the model's weights and
    checkpoints changes, a resumed run needs another call, and every process of several GPUs takes part. The last call
    counts.

    Args:
        model: as of `enable_icr`, but no RT-DETR, which has no such assigner.
        criterion: the loss too.

    Returns:
        A `Handle` whose ``disable()`` gives the stock assigners and losses back, also to a run that is on; it counts
        nothing.

    Raises:
        ImportError: ultralytics is missing, of a version that is not supported, or without what is hooked into.
        TypeError, ValueError: not such a model. One whose criterion has no assigner is a ValueError when training
            begins.
    """
    _check_model(model)
    arguments.flag("criterion", criterion)
    detr = getattr(importlib.import_module("ultralytics.models"), "RTDETR", ())
    if isinstance(model, detr):
        raise ValueError(f"model: expected one with a task-aligned assigner, got {type(model).__name__}")
    return _enable(model, Record(None), AcceleratedStart("accelerate", criterion))


def _check_model(model: Any) -> None:
    ultralytics = framework("ultralytics", "8.0.201", "8.5")
    _check_symbols(ultralytics)
    base = importlib.import_module("ultralytics.engine.model").Model
    # Their classes are texts, which a criterion of boxes does not know.
    models = importlib.import_module("ultralytics.models")  # newer versions import it late
    others = tuple(getattr(models, name, ()) for name in ("YOLOWorld", "YOLOE"))
    if not isinstance(model, base) or isinstance(model, others):
        raise TypeError(
            f"model: expected a model of ultralytics like YOLO or RTDETR, not YOLO-World or YOLOE, "
            f"got {type(model).__name__}"
        )
    if model.task != "detect":
        raise ValueError(f"model: expected one with the task detect, got {model.task}")
    if "trainer" not in model.task_map.get("detect", ()):
        raise TypeError(f"model: expected one that can be trained, got {type(model).__name__}")


def _check_symbols(ultralytics: ModuleType) -> None:
    """An error where there is nothing that a criterion could be built of."""
    for required in (
        {"utils.tal": "TaskAlignedAssigner", "utils.loss": "BboxLoss"},
        {"models.utils.loss": "RTDETRDetectionLoss"},
    ):
        with suppress(ImportError):
            if all(hasattr(importlib.import_module(f"ultralytics.{each}"), required[each]) for each in required):
                return
    raise ImportError(
        "ultralytics: expected utils.tal.TaskAlignedAssigner and utils.loss.BboxLoss, or "
        f"models.utils.loss.RTDETRDetectionLoss, found neither in {place_of(ultralytics)}"
    )


def _enable(model: Any, record: Record, *starts: Start) -> Handle:
    def disable() -> None:
        _remove_callbacks(model, starts)
        for start in starts:
            start.end(getattr(model, "trainer", None))

    replaced = [each for each in model.callbacks[EVENT] if any(start.replaces(each) for start in starts)]
    for each in replaced:
        if each.caller != starts[0].caller:
            warnings.warn(
                f"icr_kernels: {starts[0].caller} replaces the {each.thing} of {each.caller}: a model has one",
                stacklevel=3,
            )
    _remove_callbacks(model, replaced)
    for start in starts:
        model.add_callback(EVENT, start)
    if not ranks.carry_callbacks() and not isinstance(vars(model).get("train"), ranks.Launch):
        # Of the instance: a class of its own would be in the way of copies and pickles.
        model.train = ranks.Launch(model)
    return Handle(record, disable)


def _remove_callbacks(model: Any, removed: Sequence[Start]) -> None:
    callbacks = model.callbacks[EVENT]
    callbacks[:] = [each for each in callbacks if each not in removed]
    launch = vars(model).get("train")
    if isinstance(launch, ranks.Launch) and not any(isinstance(each, Start) for each in callbacks):
        del model.train
        if launch.before is not None:
            model.train = launch.before


def _mentioned(pairs: Any) -> list[str]:
    if not isinstance(pairs, Mapping):
        return []
    wholes = [name for part, names in pairs.items() for name in names_of_wholes(part, names)]
    return list(dict.fromkeys([*pairs, *wholes]))
