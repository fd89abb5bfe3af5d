"""StepSampler: a sampler with the networks of the present training step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.conditions import Conditions
from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.groups import GroupedNetworks, GroupedPopulation, leaf_latents
from lightning_hypernet.member_sampler import MemberSampler
from lightning_hypernet.population import Population
from lightning_hypernet.target.batches import parts_of
from lightning_hypernet.target.facade import PartCalls
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.target.snapshot import Snapshot
from lightning_hypernet.values import whole

_OF_A_STEP = ("population", "_steps", "_context", "part_calls", "alone", "_leader", "_following", "_together",
            "_noted")  # fmt: skip


class StepSampler(MemberSampler):
    """A sampler that draws networks for a training step, deals a batch out to them, and may follow another's.

    A class that inherits from it sets `samples` and `smallest`, the examples that a network needs at least.
    """

    samples: int
    smallest: int
    conditions: Conditions | None = None

    def leave_step(self) -> None:
        """Be outside of any step, with nothing drawn."""
        self.population: Population | None = None
        self._steps = 0
        self._context: Tensor | None = None
        self.alone: int | None = None
        self._together: int | None = None
        self._noted = True
        self._leader: weakref.ref[StepSampler] | None = None
        self._following: tuple[Population, Snapshot, Population] | None = None
        self.part_calls = PartCalls()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but what belongs to the present step."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_A_STEP}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.leave_step()

    def training_population(self) -> Population:
        """The networks of this step, drawn if they were not yet; outside of a step new ones.

        Raises:
            RuntimeError: If a backward pass asks for them when those of its forward are gone.
        """
        if not self._steps or self.population is None:
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "a backward pass calls the target again, as adjoint solvers and activation checkpoints do, when the "
                    "networks of its forward are gone: put the solver or the checkpoint inside the target, or open "
                    "hypernet.step() around the forward and the backward pass"
                )
            # with gradients always: the first call of a step may be one without, and later calls use the same networks
            with torch.inference_mode(False), torch.enable_grad():
                latents = self.draw(whole("samples", self.samples), context=self._context)
                self.population = self._populated(latents, self._together)
        return self.population

    def _populated(self, latents: Latents, together: int | None) -> Population:
        """The networks of latents: all have weights, or some at a time."""
        if together is None:
            population = self.populate(latents)
            if self.conditions is not None and latents.context is not None:
                population.networks.settings = self.conditions.settings(latents.context)
            return population
        assert isinstance(self.generator, Generator)
        networks = GroupedNetworks(self.executor.replicas, self.generator, latents, together)
        own = (self.banks, self.symmetries.gauge, self.components)
        return GroupedPopulation(leaf_latents(latents), networks, *own, examples=self.symmetries.examples)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, the statistics of members don't take the inputs of training calls for training data."""
        self._noted = False
        try:
            yield
        finally:
            self._noted = True

    @contextmanager
    def in_groups(self, together: int | None) -> Iterator[None]:
        """Within, the networks that a training step draws have weights so many at a time; None: all."""
        self._together = together
        try:
            yield
        finally:
            self._together = None

    @property
    def hyperparameters(self) -> dict[str, Tensor]:
        """The values of the conditions in this step, ``(samples,)`` or ``(samples, count)``.

        Under ``deal="batch"`` they are the one network's own, ``()`` or ``(count,)``.

        Raises:
            RuntimeError: Outside of a training step, or without conditions.
        """
        if self.conditions is None or self._context is None:
            raise RuntimeError("there are hyperparameters in a training step, of a HypernetCallback with conditions, alone")
        values = self.conditions.values(self._context)
        return values if self.alone is None else {name: value[self.alone] for name, value in values.items()}

    def of_examples(self, values: Tensor) -> Tensor:
        """For every example that the target was called with in this step what its network has.

        Args:
            values: ``(samples, ...)``.

        Returns:
            ``(batch, ...)``; ``(...)`` of the one network under ``deal="batch"``.

        Raises:
            RuntimeError: Before the target was called.
        """
        if self.alone is not None:
            return values[self.alone]
        batch = None if self.population is None else self.population.batch
        if batch is None:
            raise RuntimeError("which examples a network has is known once the target was called in training")
        sizes = torch.tensor(batch.sizes or [batch.batch], device=values.device)
        return values[: len(sizes)].repeat_interleave(sizes, 0)

    @contextmanager
    def step(self, context: Tensor | None = None) -> Iterator[None]:
        """Within, every training call uses the same networks; afterwards, at the end of the outermost, they are released.

        Args:
            context: The condition of all networks, ``(context_dim,)``, or of each, ``(samples, context_dim)``; None: zeros, or
                that of the step around this one.

        Raises:
            RuntimeError: If a condition is given in evaluation mode, or when the networks of the step are drawn already.
        """
        if context is not None and not self.training:
            raise RuntimeError("in evaluation mode every member has a condition of its own: set member_context")
        if context is not None and self._steps and self.population is not None:
            raise RuntimeError("the networks of this step are drawn already: give the condition before the target is called")
        if not self._steps:
            self.population = None
        around, self._context = self._context, self._context if context is None else context
        self._steps += 1
        try:
            yield
        finally:
            self._steps -= 1
            self._context = around
            if not self._steps:
                self.population = None

    def deal(self, batch: Any, split: Callable[[Any, int], Sequence[Any]] | None = None) -> Iterator[tuple[Any, float]]:
        """Deal out a batch before it is used: while a part is at hand, every call is one network's own, with all it is given.

        In evaluation each member gets the whole batch.

        Args:
            batch: Any nested structure of tensors, lists of examples and graphs.
            split: Makes a list of parts of the batch and a number of networks; None: along the batch's size, as found in it.

        Yields:
            A part, and its share of the examples, as in ``sum(share * loss(part) for part, share in hypernet.deal(batch))``.

        Raises:
            TypeError: If the batch holds something that can't be dealt out, or `split` gives no list of parts.
            ValueError: If there is nothing to deal out.
        """
        if not self.training:
            dealt = [(batch, 1)] * len(self.members)
        elif split is not None:
            if not callable(split):
                raise TypeError(f"split must be a function of a batch and a number of networks, not {split!r}")
            parts = split(batch, self.samples)
            if not isinstance(parts, Iterable) or isinstance(parts, (str, Mapping, Tensor)):
                raise TypeError(f"the split that deals a batch out must give a list of parts of it, not {parts!r}")
            parts = list(parts)
            if not parts:
                raise ValueError("the split that deals a batch out gives no parts but an empty list")
            dealt = [(part, 1) for part in parts]
        else:
            dealt = parts_of(batch, self.samples, self.smallest, self.executor.plans.batch_dim)
        total = sum(size for _, size in dealt)
        with self.step() if self.training else nullcontext():
            for index, (part, size) in enumerate(dealt):
                self.alone = index
                try:
                    yield part, size / total
                finally:
                    self.alone = None

    def follow(self, leader: StepSampler) -> None:
        """Have the latents of another Hypernet while it trains, as a teacher or a momentum encoder has; see `copies`."""
        self._leader = weakref.ref(leader)

    def led(self) -> Population | None:
        """The networks of the leader's latents, if it is in the middle of a training step."""
        leader = None if self._leader is None else self._leader()
        if leader is None:
            return None
        self.alone = None
        if not leader.training or not (leader._steps or leader.population is not None):
            return None
        population = leader.population or leader.training_population()
        source = self.sources()
        if self._following is None or self._following[0] is not population or not self._following[1].same(source):
            with torch.inference_mode(False), evaluating(self.generator, mode=True):  # codes are normalised as the leader's are
                together = population.networks.size if isinstance(population, GroupedPopulation) else None
                led = self._populated(population.latents, together)
            self._following = (population, Snapshot(self.sources()), led)
        self.alone = leader.alone
        return self._following[2]
