"""Members: the fixed networks that a Hypernet is in evaluation."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.population import Population, StackedTensors, StoredLatents
from lightning_hypernet.target.execution import Executor
from lightning_hypernet.target.replicas import version_of
from lightning_hypernet.target.statistics import RecentInputs


class Members(nn.Module):
    """The latents and norm statistics of the networks of evaluation; their weights are made when they are needed.

    Args:
        latents: What the members are generated from.
        context_dim: Numbers in a condition; that of the members is zero until it is set.
        statistics: ``{name: tensor}``, the target's own norm statistics.
    """

    estimated: Tensor

    def __init__(self, latents: Latents, context_dim: int, statistics: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stored = StoredLatents(latents, context_dim)
        self.statistics = StackedTensors(
            {name: value.repeat(len(latents), *(1,) * value.ndim) for name, value in statistics.items()}
        )
        self.register_buffer("estimated", torch.tensor(0.0 if statistics else 1.0))
        self.recent = RecentInputs()
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the networks."""
        return {**self.__dict__, "recent": RecentInputs(), "_made": None, "_source": None, "_making": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.forget()

    def __len__(self) -> int:
        return len(self.stored.z)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget()
        self.recent.map(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def latents(self) -> Latents:
        """What the members are generated from."""
        return self.stored.latents()

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.stored.z.device

    def set_context(self, context: Tensor) -> None:
        """Set the condition of the members, ``(members, context_dim)`` or ``(context_dim,)`` for all.

        Raises:
            ValueError: If it has another shape.
        """
        kept = self.stored.context
        if context.shape not in (kept.shape, kept.shape[1:]):
            raise ValueError(
                f"the members' context must be {tuple(kept.shape)} or {tuple(kept.shape[1:])}, not {tuple(context.shape)}"
            )
        with torch.no_grad():
            kept.copy_(context)
        self.estimated.fill_(0.0 if self.statistics.tensors() else 1.0)
        self.forget()

    def forget(self) -> None:
        """Let the networks go; they are made anew from the generator as it is when they are next asked for."""
        self._made: tuple[Any, Population] | None = None
        self._source: list[tuple[Any, str]] | None = None
        self._making = threading.Lock()

    def population(self, decode: Callable[[], Population], source: nn.Module) -> Population:
        """The networks; with gradients new ones for every call, without kept while nothing changes.

        What is written through ``.data`` is not seen; `forget` renews them.

        Args:
            decode: Makes the networks from the members' latents.
            source: The module whose parameters and buffers they come from.

        Returns:
            The population of the members.
        """
        if torch.is_grad_enabled():
            return self._decoded(decode, gradients=True)
        if self._source is None:
            places = ((module._parameters, module._buffers) for module in source.modules())
            self._source = [(place, key) for pair in places for place in pair for key in place]
        tensors = [place[key] for place, key in self._source]
        versions = [(id(tensor), version_of(tensor)) for tensor in tensors if tensor is not None]
        state = (torch.is_autocast_enabled(self.device.type), *versions)
        made = self._made
        if made is None or made[0] != state:
            with self._making:
                made = self._made
                if made is None or made[0] != state:
                    made = self._made = (state, self._decoded(decode, gradients=False))
        return made[1]

    def _decoded(self, decode: Callable[[], Population], gradients: bool) -> Population:
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            population = decode()
            population.networks.give(self.statistics.tensors())
        return population

    @property
    def stale(self) -> bool:
        """Whether training went on since the norm statistics were estimated, on inputs that are at hand."""
        return bool(self.recent) and bool(self.estimated < 1)

    @torch.no_grad()
    def update(self, executor: Executor, population: Population, batches: Iterable[Any] | None) -> None:
        """Estimate the norm statistics of the members, and average them over ranks.

        Args:
            executor: Runs the target.
            population: The members.
            batches: Inputs of the target, or tuples that begin with them; None: the last inputs seen.
        """
        statistics = self._estimate(executor, population, batches)
        if distributed.is_available() and distributed.is_initialized():
            for value in statistics.values():
                if value.is_floating_point():
                    distributed.all_reduce(value.div_(distributed.get_world_size()))
        self.statistics.update(statistics)
        self.estimated.fill_(1.0)
        self.forget()

    @torch.no_grad()
    def complete(self, executor: Executor, population: Population, batches: Iterable[Any] | None = None) -> None:
        """See that networks have norm statistics of their own; arguments as in `update`."""
        if executor.statistics and (batches is not None or not population.buffers):
            if batches is None and not self.recent:
                warn_of_statistics(executor.target, stacklevel=4)
                return
            population.networks.give(self._estimate(executor, population, batches))

    def _estimate(self, executor: Executor, population: Population, batches: Iterable[Any] | None) -> dict[str, Tensor]:
        inputs = self.recent if batches is None else self.recent.noting(batches, self.device)
        return executor.statistics.estimate(population.weights, inputs)


def warn_of_statistics(target: nn.Module, stacklevel: int) -> None:
    """Tell that networks have no norm statistics of their own, or older ones."""
    warnings.warn(
        f"the norm statistics of these networks of {type(target).__name__} were never estimated, or with other weights; call "
        "hypernet.update_statistics(loader) with training data",
        stacklevel=stacklevel + 1,
    )
