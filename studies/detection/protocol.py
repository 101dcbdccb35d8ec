"""What is trained: the arms, and the profiles of runs that are compared."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from studies.scenes import LabelNoise

BASELINE = "off"
UNIFORM, BOTH = "uniform IoU", "uniform IoU + containment"
LABEL = "containment in the label"


class Arm(NamedTuple):
    """What is different between runs, whose weight is that of the penalty and of the uniform term, if it has both.

    ``uniform``: the loss of the uniform term; ``of``: of which objects. ``gain``: a factor of the stock IoU loss.
    """

    penalty: str | None = None
    relative: bool = False
    weighting: str = "uniform"
    in_another_whole: bool = False
    uniform: str | None = None
    of: str = "parts"
    gain: float = 1.0

    @property
    def has_weight(self) -> bool:
        return self.penalty is not None or self.uniform is not None


ARMS = {
    BASELINE: Arm(),
    "containment": Arm("containment"),
    "containment+pull": Arm("containment+pull"),
    "relative": Arm("containment", relative=True),
    # No relation: the boxes of parts count more, by their own targets alone.
    UNIFORM: Arm(uniform="iou"),
    BOTH: Arm("containment", uniform="iou"),
    "uniform CIoU": Arm(uniform="ciou"),
    "uniform NWD": Arm(uniform="nwd"),
    "uniform IoU of small": Arm(uniform="iou", of="small"),
    "uniform IoU of all": Arm(uniform="iou", of="all"),
    # A wrong relation, or one with the label itself.
    "containment in another": Arm("containment", in_another_whole=True),
    LABEL: Arm(uniform=LABEL),
    # The right relation, weighed as the stock loss is.
    "containment by score": Arm("containment", weighting="tal"),
    # Whether a penalty does more than a heavier loss of boxes would.
    "box loss x 1.5": Arm(gain=1.5),
}
WEIGHT = 0.5  # where no other is said
PENALTIES = "containment", "containment+pull", "relative"
# Where images and labels are from: generated scenes with these labels, or photographs.
NOISE = {"clean": None, "noisy": LabelNoise(jitter=0.1, misses=0.1, beyond=0.1)}
PHOTOGRAPHS = "photographs"
# The labels that are learnt from may be noisy; those that are measured against never are.
VALIDATION_SEED = 1_000_000
CHECKS = 6  # on the way of a run, for its learning curve
PICTURED_SEED, PICTURES = 0, 4  # of which runs, and on how many validation images, the detections are kept


class Run(NamedTuple):
    """What is trained: a row of results.csv begins with it and is known by it. The seed draws the training images, the
    weights and their order, so arms of one seed are pairs."""

    detector: str
    arm: str
    weight: float
    labels: str
    images: int
    seed: int
    epochs: int
    size: int
    zoom: float
    batch: int

    def __str__(self) -> str:
        return "-".join(map(str, self)).replace("+", "_")


class Plan(NamedTuple):
    """Runs that are compared: the product of arms, weights and seeds."""

    detector: str
    arms: Sequence[str] = (BASELINE, *PENALTIES)
    weights: Sequence[float] = (WEIGHT,)
    labels: str = "clean"
    images: int = 320
    epochs: int = 30
    size: int = 160
    zoom: float = 2.0
    batch: int = 8
    seeds: int | None = None

    def runs(self, seed: int) -> Iterator[Run]:
        if self.seeds is not None and seed >= self.seeds:
            return
        for arm in self.arms:
            for weight in self.weights if ARMS[arm].has_weight else (0.0,):
                values = self._asdict() | {"arm": arm, "weight": weight, "seed": seed}
                yield Run(*(values[name] for name in Run._fields))


class Profile(NamedTuple):
    plans: Sequence[Plan]
    seeds: int
    validation: int
    """Images that are measured on."""

    def runs(self, seeds: int | None = None) -> list[Run]:
        """Plan by plan and seed by seed, so that what an interruption leaves can be compared."""
        count = self.seeds if seeds is None else seeds
        return list(dict.fromkeys(run for plan in self.plans for seed in range(count) for run in plan.runs(seed)))


PROFILES = {
    "quick": Profile(
        [
            Plan("yolo11n", labels="noisy", images=24, epochs=2, size=96),
            Plan("yolo11n", (BASELINE, UNIFORM, BOTH, "containment in another", LABEL), images=24, epochs=2, size=96),
            Plan("rtdetr", (BASELINE, "containment", BOTH), images=24, epochs=2, size=96),
            Plan("fcos", (BASELINE, BOTH), labels=PHOTOGRAPHS, images=24, epochs=2, size=96),
        ],
        seeds=1,
        validation=8,
    ),
    "cpu": Profile(
        [
            # Exact labels lie in their wholes, and there "relative" is "containment": one seed shows it.
            Plan("yolo11n", seeds=1),
            Plan("yolo11n", (BASELINE, "containment", "containment+pull")),
            Plan("yolo11n", labels="noisy", seeds=3),
            Plan("yolo11n", (BASELINE, "box loss x 1.5")),
            Plan("yolo11n", (BASELINE, "containment"), weights=(0.1, 2.0), seeds=3),
            Plan("yolo11n", (BASELINE, "containment"), images=80, epochs=120, seeds=3),
            Plan("yolo11n", (BASELINE, "containment"), epochs=60, seeds=3),
            Plan("rtdetr", (BASELINE, "containment"), seeds=3),
            # Is it the relation, or the weight?
            Plan("yolo11n", (BASELINE, UNIFORM, BOTH)),
            Plan("yolo11n", (BASELINE, BOTH), weights=(0.25,)),
            Plan("yolo11n", (BASELINE, "containment in another", LABEL, "containment by score")),
            Plan("yolo11n", (BASELINE, UNIFORM), weights=(0.1, 0.25, 2.0), seeds=3),
            # As `enable_small_object_term` is by default.
            Plan("yolo11n", (BASELINE, "uniform IoU of small"), weights=(0.1,), seeds=3),
            Plan(
                "yolo11n",
                (BASELINE, *(name for name, arm in ARMS.items() if arm.uniform not in (None, LABEL))),
                seeds=3,
            ),
            Plan("yolo11n", (BASELINE, UNIFORM), labels="noisy", seeds=3),
            Plan("yolo11n", (BASELINE, UNIFORM), images=80, epochs=120, seeds=3),
            Plan("yolo11n", (BASELINE, UNIFORM, "containment"), epochs=120, seeds=3),
            Plan("rtdetr", (BASELINE, UNIFORM, "containment"), epochs=120, seeds=3),
            *(
                Plan(detector, arms, weights, PHOTOGRAPHS, 839, epochs, size, zoom=1.0, seeds=3)
                for size in (160, 320)
                for detector, epochs in (("yolo11n", 40), ("fcos", 12), ("yolo12n", 40))
                for arms, weights in (
                    ((BASELINE, UNIFORM, "containment", BOTH, "relative"), (0.5,)),
                    ((BASELINE, UNIFORM), (0.1,)),
                )
            ),
        ],
        seeds=5,
        validation=200,
    ),
    # What a GPU can do in eight minutes: what matters most comes first, and what has finished counts.
    "gpu-short": Profile(
        [
            Plan("yolo12n", (BASELINE, UNIFORM), images=600, epochs=30, size=640, zoom=1.0, batch=32),
            Plan("yolo12n", (BASELINE, "containment", BOTH), images=600, epochs=30, size=640, zoom=1.0, batch=32),
        ],
        seeds=3,
        validation=150,
    ),
    "gpu": Profile(
        [
            Plan("yolo12n", images=4000, epochs=100, size=640, zoom=1.0, batch=64),
            Plan("yolo12n", labels="noisy", images=4000, epochs=100, size=640, zoom=1.0, batch=64),
            Plan("rtdetr", images=4000, epochs=100, size=640, zoom=1.0, batch=32),
        ],
        seeds=5,
        validation=1000,
    ),
}
