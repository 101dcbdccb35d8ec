"""A pytest plugin: tests of the emulated backend, on tensors of an imaginary GPU. Where tensors of two devices meet a
test fails, as on a real one; without it the emulated backend runs tensors of the CPU, and nobody would notice.

A tensor is in the memory of the CPU whatever device it says it is on. Which that is goes with its storage.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import emulated
from icr_kernels import backends

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
# Storages. What PyTorch itself makes of nothing (a gradient of zeros) would be where it is needed.
on_gpu: set[int] = set()
anywhere: set[int] = set()

# What looks at modes, or runs where none is (compilers, the short way, what is called in the middle of a backward
# pass), and what names the device that C++ sees.
MODULES = ("test_compile", "test_shortcut")
FUNCTIONS = (
    "test_checkpoint",
    "test_compiled_transforms_and_transforms_of_what_is_compiled",
    "test_derivatives_by_hand",
    "test_export",
    "test_in_a_graph",
    "test_linearized",
    "test_more_than_there_is_memory_for",
    "test_one_graph_for_all_sizes",
    "test_operators_keep_the_contract_of_the_dispatcher",
    "test_operators_keep_their_contract",
    "test_tensors_on_different_devices",
)


def storage_of(tensor: Tensor) -> int:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def is_on_gpu(tensor: Tensor) -> bool:
    return storage_of(tensor) in on_gpu


def placed(tensor: Tensor, is_there: bool) -> Tensor:
    storage = storage_of(tensor)
    (on_gpu.add if is_there else on_gpu.discard)(storage)
    anywhere.discard(storage)
    return tensor


class Copy(torch.autograd.Function):
    """To the other device, and its gradient back."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return placed(tensor.clone(), not is_on_gpu(tensor))

    @staticmethod
    def backward(ctx, gradient: Tensor | None) -> Tensor | None:
        return None if gradient is None else placed(gradient.clone(), not is_on_gpu(gradient))


def moved(tensor: Tensor, device: Any) -> Tensor:
    is_there = torch.device(device).type == "cuda"
    if is_on_gpu(tensor) == is_there:
        return tensor
    is_under_a_transform = torch._C._functorch.peek_interpreter_stack() is not None
    return placed(tensor.clone(), is_there) if is_under_a_transform else Copy.apply(tensor)


def tensors_in(*values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Operators(TorchDispatchMode):
    """Results are where the arguments are, which must be in one place."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        name, given = operator._schema.name, tensors_in(args, kwargs)
        if name.startswith("aten::lift"):
            return placed(result, False)
        old = {storage_of(tensor) for tensor in given}
        there = old & on_gpu
        if name in ("aten::copy_", "aten::_to_copy"):
            there = {storage_of(args[0])} & on_gpu
        elif there and (others := [each for each in given if self.is_elsewhere(each, operator)]):
            raise RuntimeError(f"{name}: tensors on two devices, of shapes {[tuple(each.shape) for each in others]}")
        for tensor in tensors_in(result):
            if storage_of(tensor) not in old:
                placed(tensor, bool(there))
                if old <= anywhere:
                    anywhere.add(storage_of(tensor))
        return result

    def is_elsewhere(self, tensor: Tensor, operator: torch._ops.OpOverload) -> bool:
        """PyTorch takes a number from the CPU, and indices."""
        may_be = tensor.dim() == 0 and operator.namespace != "icr_kernels"
        may_be |= "index" in operator._schema.name and not tensor.is_floating_point()
        return storage_of(tensor) not in on_gpu | anywhere and not may_be


ATTRIBUTES = {
    Tensor.device.__get__: lambda tensor: GPU if is_on_gpu(tensor) else CPU,
    Tensor.is_cuda.__get__: is_on_gpu,
    Tensor.is_cpu.__get__: lambda tensor: not is_on_gpu(tensor),
    Tensor.cpu: lambda tensor: moved(tensor, CPU),
}


class Devices(TorchFunctionMode):
    """What names a device, or asks for one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in ATTRIBUTES:
            return ATTRIBUTES[function](*args)
        if function is Tensor.to:
            return self.to(*args, **kwargs)
        device = kwargs.pop("device", None)
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and (device is not None or not tensors_in(args, kwargs)):
            return placed(result, device is not None and torch.device(device).type == "cuda")
        return placed(result, is_on_gpu(args[0])) if function is Tensor.new_tensor else result

    def to(self, tensor: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        first = args[0] if args else None
        if isinstance(first, Tensor):
            device, args = GPU if is_on_gpu(first) else CPU, (first.dtype,)
        elif isinstance(first, (str, torch.device)):
            device = first
        if dtypes := [each for each in args if isinstance(each, torch.dtype)]:
            kwargs["dtype"] = dtypes[0]
        result = tensor.to(**kwargs) if kwargs else tensor
        return result if device is None else moved(result, device)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One of each function."""
    chosen: dict[tuple[Any, str], pytest.Item] = {}
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.stem not in MODULES and name not in FUNCTIONS:
            chosen.setdefault((item.path, name), item)
    items[:] = chosen.values()


def pytest_sessionstart() -> None:
    import inputs  # noqa: F401  makes the backend known

    family = backends.BY_NAME[emulated.NAME].operators
    family.defers_count = ("cuda",)

    def obstacle(device: str) -> str | None:
        return None if device == "cuda" else f"backend {emulated.NAME!r} runs tensors on cuda, got tensors on {device}"

    backends.BY_NAME[emulated.NAME] = backends.Backend(emulated.NAME, "imaginary", ("cuda",), obstacle, family)
    torch.cuda.synchronize = lambda device=None: None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with Devices(), Operators():
        return (yield)
