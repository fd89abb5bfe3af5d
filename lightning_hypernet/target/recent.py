"""Recent inputs: the last inputs of training, from which statistics are estimated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lightning_hypernet.target.arguments import Arguments

EXAMPLES = 2048
BYTES = 64 << 20


class RecentInputs:
    """The last inputs of training: at most 2,048 examples and 64 MiB, clones, on their device, so that a step waits for none.

    Attributes:
        full: Whether older inputs were forgotten, or there is room for no more: what was before no longer matters.
    """

    def __init__(self) -> None:
        self._calls: deque[Arguments] = deque()
        self.full = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._calls)

    def add(self, arguments: Arguments) -> None:
        """Remember inputs, and forget the oldest that there is no room for."""
        if not arguments.batch:
            return
        count = min(arguments.batch, EXAMPLES)
        while count > 1 and (size := arguments.head(count).bytes) > BYTES:
            count = max(1, min(count - 1, count * BYTES // size))
        self._calls.append(arguments.head(count).map(lambda tensor: tensor.detach().clone()))
        while len(self._calls) > 1 and not self._fits():
            self._calls.popleft()
            self.full = True
        self.full |= count < arguments.batch or sum(one.batch for one in self._calls) == EXAMPLES

    def _fits(self) -> bool:
        calls = self._calls
        return sum(one.batch for one in calls) <= EXAMPLES and sum(one.bytes for one in calls) <= BYTES

    def on(self, device: torch.device) -> Iterator[Arguments]:
        """The inputs, the oldest first, on a device."""
        for arguments in list(self._calls):
            yield arguments.map(lambda tensor: tensor.to(device))

    def noting(self, inputs: Iterable[Arguments]) -> Iterator[Arguments]:
        """Inputs, remembered as they pass."""
        for arguments in inputs:
            self.add(arguments)
            yield arguments

    def map(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor."""
        self._calls = deque(arguments.map(change) for arguments in self._calls)
