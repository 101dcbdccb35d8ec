"""The kernels in Triton: the same losses and penalties as csrc/, for tensors on a GPU. In Triton's interpreter
(TRITON_INTERPRET=1) they run on CPU tensors."""

from .operators import loss, scaled, terms, terms_backward

__all__ = ["loss", "scaled", "terms", "terms_backward"]
