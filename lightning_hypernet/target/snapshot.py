"""Snapshot: tensors as they were, to see whether they changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Snapshot:
    """Copies of tensors, compared number by number: whatever way they were written to, ``.data`` too, it is seen.

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self._kept = [tensor.detach().clone() for tensor in tensors]

    def map(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every copy."""
        self._kept = [change(tensor) for tensor in self._kept]

    @torch.no_grad()
    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same numbers, of the same types, in the same places."""
        return len(tensors) == len(self._kept) and all(
            one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
            for one, other in zip(self._kept, tensors, strict=True)
        )
