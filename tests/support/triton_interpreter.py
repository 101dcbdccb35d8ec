"""Triton's interpreter, made fit for tests: `prepare` before its first launch.

Three of its operations are not what they are on a GPU: to bfloat16 it rounds by cutting off and gets its smallest
numbers wrong, a fused multiply-add it rounds twice, and along a first axis it adds up one by one, which loses digits.
And it replaces the whole language anew for every call of a function by another one, which takes ten times as long as
all the rest; of what is left, a third is for types that nobody asks for.
"""

import functools
import sys

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def prepare() -> None:
    if not hasattr(interpreter, "prepared_for_tests"):
        interpreter.prepared_for_tests = True
        _convert_bfloat16()
        _round_once()
        _add_as_a_tree()
        _patch_once_a_launch()
        _find_types_when_they_are_asked_for()


def _convert_bfloat16() -> None:
    cast = interpreter.InterpreterBuilder.cast_impl

    def exact_cast(self, source, type):
        before, after = source.dtype.scalar, type.scalar
        if before == tl.bfloat16 and after == tl.float32:
            data = (source.data.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif before == tl.float32 and after == tl.bfloat16:
            bits = source.data.view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
            data = np.where(np.isnan(source.data), 0x7FC0, rounded).astype(np.uint16)
        else:
            return cast(self, source, type)
        return interpreter.TensorHandle(data, after)

    interpreter.InterpreterBuilder.cast_impl = exact_cast


def _round_once() -> None:
    def fused(self, a, b, c):
        exact = a.data.astype(np.float64) * b.data.astype(np.float64) + c.data.astype(np.float64)
        return interpreter.TensorHandle(exact.astype(a.data.dtype), a.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = fused


def _add_as_a_tree() -> None:
    def total(self, input):
        turned = np.ascontiguousarray(np.swapaxes(input.handle.data, self.axis, -1))  # NumPy adds pairwise along it
        sums = np.swapaxes(turned.sum(-1, keepdims=True), self.axis, -1)
        return self.to_tensor(sums if self.keep_dims else sums.squeeze(self.axis), input.dtype)

    interpreter.ReduceOps.sum = total


def _patch_once_a_launch() -> None:
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()

    @functools.cache
    def languages_of(module: str) -> set[int]:
        return {id(value) for value in vars(sys.modules[module]).values() if value is tl or value is tl.core}

    def patch_once(function):
        languages = languages_of(function.__module__)
        if languages <= patched:
            return None
        patched.update(languages)
        return patch(function)

    def launch_afresh(self, *arguments, **named):
        patched.clear()
        return launch(self, *arguments, **named)

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_afresh


def _find_types_when_they_are_asked_for() -> None:
    numpy_type = interpreter._get_np_dtype
    known: dict[str, np.dtype] = {}

    def known_numpy_type(type):
        name = type.scalar.name
        if name not in known:
            known[name] = numpy_type(type)
        return known[name]

    def initialise(self, values, type=None):
        self.values = [*values]
        self.known_type = type if type is None or isinstance(type, tl.tuple_type) else tl.tuple_type(type)

    def find_type(self):
        if self.known_type is None:
            self.known_type = tl.core._type_for_tuple_values(self.values)
        return self.known_type

    interpreter._get_np_dtype = known_numpy_type
    tl.tuple.__init__ = initialise
    tl.tuple.type = property(find_type, lambda self, type: setattr(self, "known_type", type))
