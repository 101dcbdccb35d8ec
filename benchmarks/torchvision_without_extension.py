"""Makes torchvision importable beside a torch that its compiled extension does not fit.

torchvision's wheels on PyPI are built for CUDA; beside a CPU build of torch their extension does not load, and the
import of torchvision then fails because it describes operators that nobody declared. Declared here, they let all of
torchvision's Python run, its losses among it. Of the operators nms has a kernel, in torch; the others stay unusable.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A library takes its declarations back when it is collected.
_declared: list[torch.library.Library] = []


def make_importable() -> None:
    """To be called before ``import torchvision``. Where its extension loads, this changes nothing."""
    if hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed: pip install --no-deps torchvision==0.28.0")
    try:
        for extension in Path(spec.origin).parent.glob("_C*"):
            torch.ops.load_library(str(extension))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            library.define(schema)
        library.impl("nms", nms, "CPU")
        _declared.append(library)
        _let_nms_through()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The indices of the boxes (N, 4), as xyxy, that no better box overlaps by more than the threshold; best first."""
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes.float()[order].unbind(1)
    area = (x2 - x1) * (y2 - y1)
    kept, is_left = [], torch.ones_like(area, dtype=torch.bool)
    while is_left.any():
        best = int(is_left.nonzero()[0])
        kept.append(best)
        width = (torch.minimum(x2, x2[best]) - torch.maximum(x1, x1[best])).clamp(min=0)
        height = (torch.minimum(y2, y2[best]) - torch.maximum(y1, y1[best])).clamp(min=0)
        overlap = width * height
        is_left &= overlap <= iou_threshold * (area + area[best] - overlap)
        is_left[best] = False
    return order[torch.tensor(kept, dtype=torch.int64)]


def _let_nms_through() -> None:
    """torchvision asks before each operator whether its extension was loaded; for nms the answer is yes."""
    import torchvision.ops.boxes

    torchvision.ops.boxes._assert_has_ops = lambda: None
