"""What the tests run over (backends, losses, penalties, dtypes, formats) and the boxes they run on.

Everything is taken from the registry, so a new loss, penalty or backend is tested without an edit here.
"""

import importlib.util
import os
import re

import pytest
import torch
from torch import Tensor

import emulated
import icr_kernels as icr
from icr_kernels import builds
from icr_kernels.backends import BY_NAME
from icr_kernels.variants import (
    BOX_FORMATS,
    COMMON_LOSS_NAMES,
    DISTANCES,
    KIND_NAMES,
    LOSS_NAMES,
    PENALTY_NAMES,
    REDUCTIONS,
)

# Without the compiled extension its tests fail, unless this says that only the reference is meant to be tested.
REFERENCE_ONLY = os.environ.get("ICR_KERNELS_TEST_REFERENCE_ONLY") == "1"

# Without a GPU the kernels for one are tested all the same: those in Triton in its interpreter, those in CUDA emulated.
WITHOUT_GPU = not REFERENCE_ONLY and not torch.cuda.is_available()
if WITHOUT_GPU and importlib.util.find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
    importlib.import_module("triton_interpreter").prepare()
BACKENDS = icr.available_backends()
if not REFERENCE_ONLY and "cpu" not in BACKENDS:
    BACKENDS.insert(0, "cpu")
EMULATED = None
if WITHOUT_GPU and emulated.compiler() is not None:
    EMULATED = emulated.register()
    BACKENDS.insert(0, emulated.NAME)
COMPILED_BACKENDS = [name for name in BACKENDS if BY_NAME[name].operators is not None]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_compiled_backend = pytest.mark.parametrize("backend", COMPILED_BACKENDS)
# Where a test makes thousands of calls, or calls on a hundred thousand pairs, Triton's interpreter would take an hour.
INTERPRETED = ("triton",) if WITHOUT_GPU else ()
every_quick_backend = pytest.mark.parametrize("backend", [b for b in BACKENDS if b not in INTERPRETED])
every_quick_compiled_backend = pytest.mark.parametrize(
    "backend", [b for b in COMPILED_BACKENDS if b not in INTERPRETED]
)
every_loss = pytest.mark.parametrize("loss", LOSS_NAMES)
every_common_loss = pytest.mark.parametrize("loss", COMMON_LOSS_NAMES)
every_iou_loss = pytest.mark.parametrize("loss", [loss for loss in LOSS_NAMES if loss not in DISTANCES])
# In the reference autograd rounds what cancels piece by piece: there a loss rests if its IoU is not multiplied.
RESTING = [
    (loss, backend)
    for backend in BACKENDS
    for loss in LOSS_NAMES
    if backend != "reference" or loss in (*COMMON_LOSS_NAMES, "mpdiou", "shape", "piou", "wiou", "interp", *DISTANCES)
]
# Each modifier on some losses, and all together.
MODIFIED = (
    icr.BoxLoss("iou", inner=0.7),
    icr.BoxLoss("ciou", inner=20.0),
    icr.BoxLoss("giou", focaler=(0.3, 0.31)),
    icr.BoxLoss("diou", inner=0.05, focaler=(0.1, 0.8)),
    icr.BoxLoss("wiou", wise="v3"),
    icr.BoxLoss("shape", exponent=2, inner=1.25, focaler=(0, 0.95), wise=("v3", 1.7, 2.7)),
    icr.BoxLoss("mpdiou", width=64, height=48, focaler=(0.2, 0.9), wise="v2"),
    icr.BoxLoss("alpha_ciou", alpha=0.5, inner=0.7, wise=("v2", 1.5)),
    icr.BoxLoss("sd", area=400, delta=0.3, inner=0.8),
)
every_modified_loss = pytest.mark.parametrize("modified", MODIFIED, ids=repr)
every_penalty = pytest.mark.parametrize("penalty", PENALTY_NAMES)
every_kind = pytest.mark.parametrize("kind", KIND_NAMES)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
every_format = pytest.mark.parametrize("box_format", BOX_FORMATS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
# A loss with its penalty is a sum: each loss with one penalty and each penalty with one loss.
LOSSES_AND_PENALTIES = [(loss, "containment+pull") for loss in LOSS_NAMES] + [
    ("iou", penalty) for penalty in PENALTY_NAMES if penalty != "containment+pull"
]
every_loss_and_penalty = pytest.mark.parametrize(("loss", "penalty"), LOSSES_AND_PENALTIES)
# Where a test is about what is around the formulas (formats, dtypes, masks, memory): of two boxes alone, of the box
# around both with a value that is held constant, of the most steps; and one that is called, with numbers of its own.
SOME_LOSSES = ("iou", "ciou", "siou", "sd")
some_losses = pytest.mark.parametrize("loss", SOME_LOSSES)
some_losses_and_penalties = pytest.mark.parametrize(
    ("loss", "penalty"), [(loss, "containment+pull") for loss in SOME_LOSSES] + [("iou", "log")]
)
# Both kinds of similarity, a share of the first box, and a penalty.
SOME_KINDS = ("iou", "siou", "containment", "pull_penalty")
some_kinds = pytest.mark.parametrize("kind", SOME_KINDS)
full_precision = pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=dtype_id)
half_precision = pytest.mark.parametrize("dtype", HALF_DTYPES, ids=dtype_id)

# The instruction sets this build holds; "generic" stands for them where there is no build, and fails.
INSTRUCTION_SETS = ["generic"] if builds.cpu_build is None else builds.cpu_build.instruction_sets()


def value_range(variants, name: str) -> tuple[float, float]:
    """The range that the registry states, "[0, 2)"."""
    text = next(variant.value_range for variant in variants if variant.name == name)
    low, high = re.fullmatch(r"[\[(](-?[\d.]+), (-?[\d.]+)[\])]", text).groups()
    return float(low), float(high)


def device_of(backend: str) -> str:
    """A device whose tensors the backend runs: the CPU where it can."""
    return next((device for device in ("cpu", "cuda") if BY_NAME[backend].obstacle(device) is None), "cpu")


def pairs(
    n: int, *, dtype: torch.dtype = torch.float32, seed: int = 0, box_format: str = "xyxy", device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions of n plates, the plates and their cars: predictions that overlap their plate and predictions that do
    not; plates inside, half outside and wholly outside their car, larger than it too. No ties, but by rounding."""
    cars, index = _cars(n, n, seed)
    return tuple(
        to_format(boxes, box_format).to(device, dtype) for boxes in (*_plates(cars[index], seed + 1), cars[index])
    )


def pairs_of_a_table(
    n: int, m: int, *, dtype: torch.dtype = torch.float32, seed: int = 0, box_format: str = "xyxy", device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `pairs`, with the cars as a table of m rows: predictions, plates, table, index. Rows repeat and some are left
    out; every seventh plate has no car (-1)."""
    cars, index = _cars(n, m, seed)
    pred, target = _plates(cars[index], seed + 1)
    index = torch.where(torch.arange(n) % 7 == 6, -1, index)
    pred, target, cars = (to_format(boxes, box_format).to(device, dtype) for boxes in (pred, target, cars))
    return pred, target, cars, index.to(device)


def as_table(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) as a table and its index: two pairs share a row, and some have none (-1, or beyond the end)."""
    table, place = rows[::2].clone(), torch.arange(len(rows), device=rows.device)
    nowhere = torch.where(place % 2 == 0, -1, len(table) + place)
    return table, torch.where((place % 5 == 3) | (place % 64 >= 32), nowhere, place // 2)


def _random(seed: int):
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    return uniform


def _cars(n: int, m: int, seed: int) -> tuple[Tensor, Tensor]:
    uniform = _random(seed)
    first, size = uniform(0, 60, m, 2), uniform(16, 48, m, 2)
    return torch.cat((first, first + size), 1), torch.arange(n) if m == n else uniform(0, m, n).long()


def _plates(cars: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    n, uniform = len(cars), _random(seed)
    row = torch.arange(n).unsqueeze(1)
    car_center, car_size = (cars[:, :2] + cars[:, 2:]) / 2, cars[:, 2:] - cars[:, :2]
    reach = torch.tensor([0.2, 0.5, 0.9])[row % 3]
    center = car_center + reach * car_size * uniform(-1, 1, n, 2)
    size = car_size * uniform(0.2, 0.6, n, 2)
    target = torch.cat((center - size / 2, center + size / 2), 1)
    center = center + torch.tensor([0.2, 0.5, 0.5, 2.0])[row % 4] * size * uniform(-1, 1, n, 2)
    size = size * torch.where(row % 11 == 10, 5, 1) * uniform(0.6, 1.5, n, 2)
    return torch.cat((center - size / 2, center + size / 2), 1), target


def to_format(corners: Tensor, box_format: str) -> Tensor:
    """Boxes given by their corners, in another format."""
    first, second = corners[..., :2], corners[..., 2:]
    if box_format == "cxcywh":
        return torch.cat(((first + second) / 2, second - first), -1)
    return torch.cat((first, second - first), -1) if box_format == "xywh" else corners


def grid_boxes(n: int, side: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Boxes whose corners are integers from 0 to side: full of ties, touching edges, empty and inverted boxes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, side + 1, (n, 4), generator=generator).to(dtype)


def crowd(n: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Valid boxes that often overlap, without ties."""
    uniform = _random(seed)
    first = uniform(0, 60, n, 2)
    return torch.cat((first, first + uniform(1, 40, n, 2)), 1).to(device, dtype)


def box(*coordinates: float, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.tensor([coordinates], dtype=dtype, device=device)
