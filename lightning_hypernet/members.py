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
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.execution import Executor
from lightning_hypernet.target.recent import EXAMPLES, RecentInputs
from lightning_hypernet.target.replicas import version_of
from lightning_hypernet.target.snapshot import Snapshot
from lightning_hypernet.values import shown


class Members(nn.Module):
    """The latents and statistics of the networks of evaluation; their weights are made when they are needed.

    Statistics that were loaded stay as they are until so many inputs were seen that those before no longer matter.

    Args:
        latents: What the members are generated from.
        context_dim: Numbers in a condition; that of the members is zero until it is set.
        statistics: ``{name: tensor}``, the target's own statistics in norm layers.
    """

    estimated: Tensor

    def __init__(self, latents: Latents, context_dim: int, statistics: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stored = StoredLatents(latents, context_dim)
        self.statistics = StackedTensors(
            {name: value.repeat(len(latents), *(1,) * value.ndim) for name, value in statistics.items()}
        )
        self.others: dict[str, Tensor] = {}
        self.register_buffer("estimated", torch.tensor(0.0 if statistics else 1.0))
        self._begin()

    def _begin(self) -> None:
        self.recent = RecentInputs()
        self._loaded = False
        self._fitted: Snapshot | None = None
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the networks and the inputs."""
        made = ("recent", "_loaded", "_fitted", "_made", "_making")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin()

    def __len__(self) -> int:
        return len(self.stored.z)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget()
        self.recent.map(fn)
        self.others = {name: fn(value) for name, value in self.others.items()}
        if self._fitted is not None:
            self._fitted.map(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.estimated = self.estimated.float()  # as a Hypernet of a target of any type has it
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The statistics outside of norm layers."""
        return {"others": dict(self.others)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        held = self.statistics.tensors()
        for name, value in state["others"].items():
            if name in held or not isinstance(value, Tensor) or value.shape[:1] != self.stored.z.shape[:1]:
                raise ValueError(f"the members' statistics {shown(name)} are none of {len(self.stored.z)} networks")
        self.others = {name: value.to(self.device) for name, value in state["others"].items()}

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._loaded, self._fitted = bool(self.estimated >= 1), None
        self.forget()

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
        self.forget()

    def forget(self) -> None:
        """Let the networks go; they are made anew from the generator as it is when they are next asked for."""
        self._made: tuple[Any, Snapshot, Population] | None = None
        self._making = threading.RLock()

    def saw(self, arguments: Arguments) -> None:
        """Remember training inputs; the statistics are those of older weights from now on."""
        self.estimated.zero_()
        self.recent.add(arguments)

    def remember(self, batches: Iterable[Arguments], most: int = EXAMPLES) -> None:
        """Keep training inputs for networks that are sampled later, as many as there is room for; the members stay as they are.

        Args:
            batches: Arguments of the target; no more are read than are kept.
            most: How many examples suffice.

        Raises:
            ValueError: If there are none.
        """
        for arguments in batches:
            self.recent.add(arguments)
            most -= arguments.batch
            if self.recent.full or most <= 0:
                break
        if not self.recent:
            raise ValueError("no batch came to estimate statistics from; pass a loader that is not empty")

    def stale(self, source: list[Tensor]) -> bool:
        """Whether the weights are others than the statistics were estimated with, which are not to stay as they were loaded.

        Args:
            source: What the members' weights are made from.
        """
        if any(map(_is_wrapped, source)):
            return False
        if self._loaded and not self.recent.full:
            self.estimated.fill_(1.0)
        elif self.estimated < 1:
            return True
        elif self._fitted is None:
            self._fitted = Snapshot(source)
        else:
            return not self._fitted.same(source)
        return False

    def population(self, decode: Callable[[], Population], source: list[Tensor], shared: list[Tensor]) -> Population:
        """The networks; with gradients new ones for every call, without kept while nothing changes.

        Args:
            decode: Makes the networks from the members' latents.
            source: What they are made from, which is compared number by number.
            shared: The target's own tensors, which are the networks' too.

        Returns:
            The population of the members.
        """
        if torch.is_grad_enabled() or any(map(_is_wrapped, source)):
            return self.decoded(decode, gradients=torch.is_grad_enabled())
        source = [*source, *self.statistics.tensors().values(), *self.others.values()]
        device = self.device.type
        autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        state = (autocast, *((id(tensor), version_of(tensor)) for tensor in shared))
        made = self._made
        if made is None or made[0] != state or not made[1].same(source):
            with self._making:
                made = self._made
                if made is None or made[0] != state or not made[1].same(source):
                    made = self._made = (state, Snapshot(source), self.decoded(decode, gradients=False))
        return made[2]

    def decoded(self, decode: Callable[[], Population], gradients: bool) -> Population:
        """The networks made anew, with gradients or without."""
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            population = decode()
            population.networks.give({**self.statistics.tensors(), **self.others})
        return population

    @torch.no_grad()
    def update(
        self,
        executor: Executor,
        decode: Callable[[], Population],
        source: list[Tensor],
        batches: Iterable[Arguments] | None = None,
        all_ranks: bool = False,
    ) -> None:
        """Estimate the statistics of the members.

        Args:
            executor: Runs the target.
            decode: Makes the networks from the members' latents.
            source: What the members' weights are made from.
            batches: Arguments of the target; None: the last inputs seen.
            all_ranks: Average over all ranks, which must all come here.
        """
        with self._making, torch.inference_mode(False):
            statistics: dict[str, Tensor] = {}
            if self.recent or batches is not None or not all_ranks:
                statistics = self._estimate(executor, decode(), batches)
            if all_ranks:
                statistics = _averaged(statistics, {**self.statistics.tensors(), **self.others}, self.device)
            norms = self.statistics.tensors()
            self.statistics.update({name: value for name, value in statistics.items() if name in norms})
            self.others = {name: value for name, value in statistics.items() if name not in norms}
            self.estimated.fill_(1.0)
            self._fitted, self._loaded = Snapshot(source), False
            self.forget()

    @torch.no_grad()
    def complete(self, executor: Executor, population: Population, batches: Iterable[Arguments] | None = None) -> None:
        """See that networks have statistics of their own; arguments as in `update`.

        Raises:
            RuntimeError: If the members have statistics from a file, and there are no inputs to estimate others from.
        """
        known = executor.statistics.possible if batches is not None else bool(executor.statistics)
        if known and (batches is not None or not population.buffers):
            if batches is None and not self.recent:
                if self.estimated >= 1:
                    raise RuntimeError(
                        f"new networks of {type(executor.target).__name__} need norm statistics of their own, and no training "
                        "inputs are at hand: pass loader= to from_checkpoint or ensemble, or call "
                        "hypernet.update_statistics(loader) first"
                    )
                warn_of_statistics(executor.target, stacklevel=4)
                return
            population.networks.give(self._estimate(executor, population, batches))

    def _estimate(self, executor: Executor, population: Population, batches: Iterable[Arguments] | None) -> dict[str, Tensor]:
        inputs = self.recent.on(self.device) if batches is None else self.recent.noting(batches)
        return executor.statistics.estimate(population.weights, inputs)


def _averaged(statistics: dict[str, Tensor], like: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The mean of each over the ranks that have it: what one rank's inputs leave alone another's may change."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return statistics
    each: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(each, {name: (value.shape, value.dtype) for name, value in statistics.items()})
    found = dict(statistics) or {name: torch.zeros_like(value) for name, value in like.items()}
    every = {name: kind for one in each for name, kind in one.items()}
    for name, (shape, dtype) in sorted(every.items()):
        have = [rank for rank, one in enumerate(each) if name in one]
        value = statistics[name] if name in statistics else torch.zeros(shape, dtype=dtype, device=device)
        if dtype.is_floating_point:
            distributed.all_reduce(value)
            found[name] = value / len(have)
        elif len(have) < len(each):  # a counter, which a rank has of its own if it can
            distributed.broadcast(kept := value.clone(), have[0])
            found[name] = value if name in statistics else kept
    return found if every else {}


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether it is one within a transform of torch.func, whose numbers can't be looked at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def warn_of_statistics(target: nn.Module, stacklevel: int) -> None:
    """Tell that networks have no statistics of their own, or older ones."""
    warnings.warn(
        f"the norm statistics of these networks of {type(target).__name__} were never estimated, or with other weights; call "
        "hypernet.update_statistics(loader) with training data",
        stacklevel=stacklevel + 1,
    )
