"""Makes torchvision importable beside a torch that its compiled extension does not fit.

torchvision's wheels on PyPI are built for CUDA; beside a CPU build of torch their extension does not load, and the
import of torchvision then fails because it describes operators that nobody declared. Declared here without a kernel,
they let all of torchvision's Python run, its losses among it; the operators themselves stay unusable.
"""

import importlib.util
from pathlib import Path

import torch

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
        _declared.append(library)
