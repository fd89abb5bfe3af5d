"""MemberSampler: a sampler with fixed networks for evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.generator.latents import as_numbers
from lightning_hypernet.members import Members, warn_of_statistics
from lightning_hypernet.population import Population, check_population
from lightning_hypernet.sampler import Sampler
from lightning_hypernet.shards import is_sharded, own_part
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.execution import is_followed
from lightning_hypernet.target.recent import EXAMPLES
from lightning_hypernet.target.reduction import Reduction


class MemberSampler(Sampler):
    """A sampler whose networks are run, kept and turned into plain modules, and the members that it is in evaluation.

    A class that inherits from it sets `members` and `reduce`.
    """

    members: Members
    reduce: Reduction

    def run(self, population: Population, *args: Any, chunk_size: int | None = None, **kwargs: Any) -> Any:
        """Call the target with the weights of every network, all on the same inputs, in the present mode.

        Args:
            population: S networks.
            args: Arguments of the target.
            chunk_size: Networks that vmap runs at once, 1 or more; all by default.
            kwargs: Keyword arguments of the target.

        Returns:
            What the target returns, every tensor with a leading axis ``(S, ...)``.
        """
        check_population(population, self.banks.shapes)
        if not self.training:
            self.members.complete(self.executor, population)
        arguments = self.executor.plans.arguments(self.target, args, kwargs)
        return self.executor.stacked(population.networks, arguments, chunk_size=chunk_size)

    def materialize(self, population: Population) -> list[nn.Module]:
        """Turn every network into a plain copy of the target, whose state dict fits an unwrapped target strictly."""
        check_population(population, self.banks.shapes)
        self.members.complete(self.executor, population)
        return self.executor.materialize_all(population.weights, population.buffers)

    def ensemble(
        self,
        n: int | Population,
        component: int | None = None,
        context: Tensor | None = None,
        loader: Iterable[Any] | None = None,
    ) -> Ensemble:
        """Draw a fixed set of networks, as a module of its own.

        Args:
            n: How many; or networks that this Hypernet has sampled.
            component: As in `sample`.
            context: As in `sample`.
            loader: Training data to estimate norm statistics from, as in `update_statistics`; None: the last inputs seen.

        Returns:
            The ensemble.
        """
        if isinstance(n, Population):
            check_population(n, self.banks.shapes)
            if component is not None or context is not None:
                raise ValueError("networks that were sampled have their component and context: leave both out")
            population = n
        else:
            population = self.sample(n, component, context)
        self.members.complete(self.executor, population, None if loader is None else self._inputs(loader))
        executor = copy.deepcopy(self.executor)
        return Ensemble(executor, population.weights, population.buffers, population.latents, self.reduce)

    @property
    def member_context(self) -> Tensor:
        """The condition of every member, ``(members, context_dim)``; assign to it, ``(context_dim,)`` for all."""
        return self.members.stored.context

    @member_context.setter
    def member_context(self, context: Tensor) -> None:
        self.members.set_context(as_numbers("member_context", context))

    def member_population(self) -> Population:
        """The networks of the evaluation ensemble, with their norm statistics; kept while nothing changes.

        In evaluation statistics are estimated from the last inputs seen, if the weights have changed since they were. What
        traces and exports sees how the networks are made.
        """
        if is_followed():
            return self.members.decoded(self._decode_members, torch.is_grad_enabled())
        source = self.sources()
        if not self.training and self.executor.statistics and self.members.stale(source):
            if self.members.recent:
                self.members.update(self.executor, self._decode_members, source)
            else:
                warn_of_statistics(self.target, stacklevel=4)
        shared = [*self.target.parameters(), *self.target.buffers()]
        return self.members.population(self._decode_members, source, shared)

    def sources(self) -> list[Tensor]:
        """What the members' weights are made from; of what is sharded, this rank's part."""
        return [own_part(tensor) for tensor in self._made_from()]

    def _made_from(self) -> Iterator[Tensor]:
        for module in (self.generator, self.prior, self.members.stored):
            yield from (*module.parameters(), *module.buffers())

    def same_as(self, other: MemberSampler) -> bool:
        """Whether another is made for the same target in the same way, as a copy is."""
        return bool(self.banks.shapes == other.banks.shapes and self.options == other.options)

    def settle_statistics(self) -> None:
        """Estimate the members' statistics from the last inputs seen, if they are due; under DDP on all ranks together."""
        ranks = distributed.is_available() and distributed.is_initialized()
        for tensor in self._made_from() if ranks else ():
            if not is_sharded(tensor):
                distributed.broadcast(tensor.detach(), 0)  # as DDP does with buffers before the next forward
        due = self.members.estimated.new_tensor(
            float(self.executor.statistics.possible and self.members.stale(self.sources()) and bool(self.members.recent))
        )
        if ranks:
            distributed.all_reduce(due, distributed.ReduceOp.MAX)
        if due:
            self.members.update(self.executor, self._decode_members, self.sources(), all_ranks=True)

    def _decode_members(self) -> Population:
        return self.decode(self.prior.renewed(self.members.latents))

    def update_statistics(
        self,
        batches: Iterable[Any] | None = None,
        population: Population | None = None,
        inputs: Callable[[Any], Any] | None = None,
    ) -> None:
        """Estimate the statistics of every network, whatever training changes in buffers, in one pass over the data.

        Networks that are sampled later get theirs from the last of these inputs, 2,048 and 64 MiB at most.

        Args:
            batches: A loader of training data. A batch reaches the target as `training_step` was seen to call it, else as its
                `forward` takes it: inputs, a tuple that begins with them, or a mapping by name. None: the last inputs seen.
            population: The networks; None: the members of the evaluation ensemble.
            inputs: Gives what the target is called with of a batch: a tuple of arguments, a mapping of keyword arguments, or
                the one argument.

        Raises:
            ValueError: If there are no batches, or it is not clear how they reach the target.
        """
        if population is not None:
            check_population(population, self.banks.shapes)
        read = None if batches is None else self._inputs(batches, inputs)
        if population is not None:
            population.networks.buffers = {}
            self.members.complete(self.executor, population, read)
        elif self.executor.statistics.possible:
            self.members.update(self.executor, self._decode_members, self.sources(), read)

    def remember(self, batches: Iterable[Any], inputs: Callable[[Any], Any] | None = None, most: int = EXAMPLES) -> None:
        """Take training data for networks that are sampled later, while members whose statistics are known keep them.

        The networks' statistics are estimated from its first inputs, 2,048 and 64 MiB at most, and symmetries are read with
        its first examples, unless there were example inputs.

        Args:
            batches: As in `update_statistics`.
            inputs: As in `update_statistics`.
            most: How many examples suffice, where the time that statistics take counts.

        Raises:
            ValueError: If there are no batches, or it is not clear how they reach the target.
        """
        read = self._inputs(batches, inputs)
        if not self.executor.statistics.possible:
            next(read, None)
        elif self.members.estimated < 1:
            self.update_statistics(batches, inputs=inputs)
        else:
            self.executor.statistics.expect(self.members.others)
            self.members.remember(read, most)

    def see(self, arguments: Arguments, whole: bool = False) -> None:
        """Read symmetries with the first two examples of a call of the target, where there are no example inputs yet.

        Args:
            arguments: The arguments of the call.
            whole: Whether all examples are needed, since they may refer to each other, as graphs do.
        """
        if self.symmetries.examples is None:
            few = arguments.head(2) if arguments.batch and not whole else arguments.map(torch.detach)
            self.symmetries.examples = few.map(torch.clone)
            self.members.forget()  # what was read of them was read without a gauge

    def _inputs(self, batches: Iterable[Any], inputs: Callable[[Any], Any] | None = None) -> Iterator[Arguments]:
        return self._seen(self.executor.read(batches, self.members.device, inputs))

    def _seen(self, batches: Iterable[Arguments]) -> Iterator[Arguments]:
        for arguments in batches:
            self.see(arguments)
            yield arguments
