"""Statistics: the buffers of norm layers that training changes, estimated for every network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_hypernet.target.arguments import Arguments, inputs_of
from lightning_hypernet.target.networks import call, rows_of
from lightning_hypernet.target.replicas import Replicas, Tensors

EXAMPLES = 2048


class RecentInputs:
    """The last inputs of training, as many as statistics need."""

    def __init__(self) -> None:
        self._calls: deque[Arguments] = deque()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._calls)

    def __iter__(self) -> Iterator[Arguments]:
        """The inputs, the oldest first."""
        return iter(list(self._calls))

    def add(self, arguments: Arguments) -> None:
        """Remember inputs, and forget the oldest that are no longer needed."""
        self._calls.append(arguments.head(arguments.batch))
        while sum(one.batch for one in self._calls) - self._calls[0].batch >= EXAMPLES:
            self._calls.popleft()

    def noting(self, batches: Iterable[Any], device: torch.device) -> Iterator[Arguments]:
        """The inputs of batches, remembered as they pass."""
        for arguments in inputs_of(batches, device):
            self.add(arguments)
            yield arguments

    def map(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor."""
        self._calls = deque(arguments.map(change) for arguments in self._calls)


class Statistics:
    """The running statistics of a target's norm layers.

    Args:
        replicas: The target's replicas.

    Attributes:
        frozen: For every norm layer, whether it is in evaluation mode in training: it keeps the target's own statistics.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        modules = replicas.template.named_modules()
        self._norms = {path: one for path, one in modules if isinstance(one, _NormBase) and one.track_running_stats}
        self.frozen = [False] * len(self._norms)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.frozen)

    def own(self) -> dict[str, Tensor]:
        """The target's own statistics, by name."""
        return _buffers_of(self._norms)

    def note_frozen(self) -> None:
        """Remember which norm layers are in evaluation mode now."""
        self.frozen = [not module.training for module in self._norms.values()]

    @property
    def frozen_paths(self) -> list[str]:
        """Where the frozen norm layers are in the target."""
        return [path for path, frozen in zip(self._norms, self.frozen, strict=True) if frozen]

    def frozen_in(self, network: nn.Module) -> nn.Module:
        """A network of the target, its frozen norm layers put in evaluation mode."""
        for path in self.frozen_paths:
            network.get_submodule(path).eval()
        return network

    @torch.no_grad()
    def estimate(self, weights: Tensors, batches: Iterable[Arguments]) -> dict[str, Tensor]:
        """Estimate the statistics of every network, in one pass over the data.

        The cumulative average over batches, as `torch.optim.swa_utils.update_bn` computes it, but with every other layer in
        evaluation mode, frozen norm layers too.

        Args:
            weights: ``{name: (S, *shape)}``.
            batches: Arguments of the target, shared by all networks.

        Returns:
            ``{name: (S, *shape)}`` for every buffer of a norm layer.

        Raises:
            ValueError: If there are no batches.
        """
        habits = self._replicas.habits
        change = torch.clone if habits.writes_weights or not habits.seen else torch.detach
        networks = len(next(iter(weights.values())))
        total = {name: value.expand(networks, *value.shape).clone() for name, value in self.own().items()}
        norms = {path for path, frozen in zip(self._norms, self.frozen, strict=True) if not frozen}
        estimated = [name for name in total if name.rpartition(".")[0] in norms]
        seen = 0
        for seen, arguments in enumerate(batches, start=1):
            for index, row in enumerate(rows_of(weights, change)):
                buffers = self._of_one(row, norms, arguments)
                for name in estimated:
                    if total[name].dtype.is_floating_point:
                        total[name][index] += (buffers[name] - total[name][index]) / seen
                    else:
                        total[name][index] = seen
        if not seen:
            raise ValueError("no batch came to estimate norm statistics from; pass a loader that is not empty")
        return total

    def _of_one(self, weights: Tensors, norms: set[str], arguments: Arguments) -> dict[str, Tensor]:
        """The buffers after one batch with one network's weights."""
        (replica,) = taken = self._replicas.take(1)
        try:
            replica.own_buffers()
            replica.install(weights, {})
            for module in replica.module.modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    module.training = False
            for path in norms:
                norm = replica.module.get_submodule(path)
                norm.training, norm.momentum = True, 1.0  # type: ignore[assignment]
            args, kwargs = arguments.of(0, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
            call(replica.module, "forward", args, kwargs)
            return {name: value.clone() for name, value in replica.buffers().items()}
        finally:
            self._replicas.give_back(taken)


def _buffers_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The buffers that modules, given by their paths, have themselves."""
    found: dict[str, Any] = {}
    for path, module in modules.items():
        found |= {f"{path}.{name}" if path else name: buffer for name, buffer in module.named_buffers(recurse=False)}
    return found
