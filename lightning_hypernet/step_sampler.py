"""StepSampler: a sampler with the networks of the present training step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.conditions import Conditions
from lightning_hypernet.estimators import BASELINES, MovingAverage, leave_one_out, score_function
from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.groups import GroupedNetworks, GroupedPopulation, leaf_latents
from lightning_hypernet.member_sampler import MemberSampler
from lightning_hypernet.population import Population
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.batches import parts_of
from lightning_hypernet.target.facade import PartCalls
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.target.snapshot import Snapshot
from lightning_hypernet.tasks import Encoded
from lightning_hypernet.values import choice, instance, whole

_OF_A_STEP = ("population", "_steps", "_context", "part_calls", "alone", "_leader", "_following", "_together", "_dealt",
              "_density", "_given", "noted")  # fmt: skip


class StepSampler(MemberSampler):
    """A sampler that draws networks for a training step, deals a batch out to them, and may follow another's.

    A class that inherits from it sets `samples` and `smallest`, the examples that a network needs at least.
    """

    samples: int
    smallest: int
    conditions: Conditions | None = None
    population: Population | None
    _dealt: dict[int, list[int]]
    _density: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.averages: dict[str, MovingAverage] = {}

    def leave_step(self) -> None:
        """Be outside of any step, with nothing drawn."""
        self._steps = 0
        self._context: Tensor | None = None
        self._given: Latents | Encoded | None = None
        self.alone: int | None = None
        self._together: int | None = None
        self.noted = True
        self._leader: weakref.ref[StepSampler] | None = None
        self._following: tuple[Population, Snapshot, Population] | None = None
        self.part_calls = PartCalls()
        self._begin()

    def _begin(self) -> None:
        """Have nothing drawn, and no batch dealt out."""
        vars(self).update(population=None, _dealt={}, _density=None)  # without what a module asks of every name

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
            self._begin()
            # with gradients always: the first call of a step may be one without, and later calls use the same networks
            with torch.inference_mode(False), torch.enable_grad():
                given = self._given
                latents = given.latents if isinstance(given, Encoded) else given
                if latents is None:
                    latents = self.draw(self.networks_a_step, context=self._context)
                self.population = self._populated(latents, self._together)
                self.population.encoded = given if isinstance(given, Encoded) else None
            if not self.training:
                self.members.complete(self.executor, self.population)
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
        drawn = leaf_latents(latents)
        return GroupedPopulation(drawn, networks, *own, examples=self.symmetries.examples, distribution=self.generator)

    @property
    def networks_a_step(self) -> int:
        """How many networks a training step draws: `samples`, and one while there is a trunk."""
        return 1 if self.generator.trunk else whole("samples", self.samples)

    @property
    def has_latents(self) -> bool:
        """Whether the networks of this step are those of latents that were given."""
        return self._given is not None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, the statistics of members don't take the inputs of training calls for training data."""
        self.noted = False
        try:
            yield
        finally:
            self.noted = True

    @contextmanager
    def in_groups(self, together: int | None) -> Iterator[None]:
        """Within, the networks that a training step draws have weights so many at a time; None: all."""
        self._together = together
        try:
            yield
        finally:
            self._together = None

    def hyperparameters(self) -> dict[str, Tensor]:
        """The values of the conditions in this step, ``(samples,)`` or ``(samples, count)``; see `of_examples`.

        Raises:
            RuntimeError: Outside of a training step, or without conditions.
        """
        if self.conditions is None or self._context is None:
            raise RuntimeError("there are hyperparameters in a training step, of a HypernetCallback with conditions, alone")
        return self.conditions.values(self._context)

    def of_examples(self, values: Tensor, count: int | None = None) -> Tensor:
        """For every example of a call in this step what its network has, in the order of the inputs.

        Args:
            values: ``(samples, ...)``.
            count: Examples of the call, where there were several; None: the last.

        Returns:
            ``(batch, ...)``; ``(...)`` of the one network under ``deal="batch"``.

        Raises:
            RuntimeError: Before the target was called.
            ValueError: If no call had so many examples.
        """
        if self.alone is not None:
            return values[self.alone]
        if not self._dealt:
            raise RuntimeError("which examples a network has is known once the target was called in a training step")
        count = list(self._dealt)[-1] if count is None else count
        if count not in self._dealt:
            seen = " or ".join(map(str, self._dealt))
            raise ValueError(f"the target was called with {seen} examples in this step, not with {count}")
        sizes = torch.tensor(self._dealt[count], device=values.device)
        return values[: len(sizes)].repeat_interleave(sizes, 0)

    @contextmanager
    def step(self, context: Tensor | None = None, latents: Latents | Encoded | None = None) -> Iterator[None]:
        """Within, every training call uses the same networks; afterwards, at the end of the outermost, they are released.

        Args:
            context: The condition of all networks, ``(context_dim,)``, or of each, ``(samples, context_dim)``; None: zeros, or
                that of the step around this one.
            latents: What the networks are generated from, or what an encoder made of data sets; None: draws of the prior. In
                evaluation mode these networks take the place of the members.

        Raises:
            RuntimeError: If a condition is given in evaluation mode, or when the networks of the step are drawn already.
        """
        if context is not None and not self.training:
            raise RuntimeError("in evaluation mode every member has a condition of its own: set member_context")
        if (context is not None or latents is not None) and self._steps and self.population is not None:
            raise RuntimeError(
                "the networks of this step are drawn already: give the condition or latents before the target is called"
            )
        if context is not None and latents is not None:
            raise RuntimeError("latents have their own condition: leave out context")
        if not self._steps:
            self._begin()
        around, self._context = (self._context, self._given), self._context if context is None else context
        self._given = self._given if latents is None else latents
        self._steps += 1
        try:
            yield
        finally:
            self._steps -= 1
            self._context, self._given = around
            if not self._steps:
                self._begin()

    def get_extra_state(self) -> dict[str, Any]:
        """Beside what samplers keep, the moving averages of `surrogate`."""
        return {**super().get_extra_state(), "averages": {name: one.state() for name, one in self.averages.items()}}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue as a checkpoint left off."""
        super().set_extra_state(state)
        self.averages = {name: MovingAverage().load(one) for name, one in state.get("averages", {}).items()}

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
        own = self.training or self._given is not None
        if not own:
            dealt = [(batch, 1)] * len(self.members)
        elif split is not None:
            if not callable(split):
                raise TypeError(f"split must be a function of a batch and a number of networks, not {split!r}")
            parts = split(batch, self.networks_a_step)
            if not isinstance(parts, Iterable) or isinstance(parts, (str, Mapping, Tensor)):
                raise TypeError(f"the split that deals a batch out must give a list of parts of it, not {parts!r}")
            parts = list(parts)
            if not parts:
                raise ValueError("the split that deals a batch out gives no parts but an empty list")
            dealt = [(part, 1) for part in parts]
        else:
            dealt = parts_of(batch, self.networks_a_step, self.smallest, self.executor.plans.batch_dim)
        total = sum(size for _, size in dealt)
        with self.step() if own else nullcontext():
            for index, (part, size) in enumerate(dealt):
                self.alone = index
                try:
                    yield part, size / total
                finally:
                    self.alone = None

    def follow(self, leader: StepSampler) -> None:
        """Have the latents of another Hypernet while it trains, as a teacher or a momentum encoder has; see `copies`."""
        self._leader = weakref.ref(leader)

    @property
    def leader(self) -> StepSampler | None:
        """The Hypernet whose latents this one has while that trains; None if it follows none."""
        return None if self._leader is None else self._leader()

    def led(self) -> Population | None:
        """The networks of the leader's latents, if it is in the middle of a training step."""
        leader = self.leader
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

    def note_dealt(self, arguments: Arguments) -> None:
        """Remember how the examples of a training call were dealt out to the networks of this step."""
        if self._steps and arguments.batch:
            self._dealt.pop(arguments.batch, None)  # the last call stands last
            self._dealt[arguments.batch] = arguments.sizes or [arguments.batch]

    def surrogate(self, values: Tensor, baseline: str = "auto", name: str = "values") -> Tensor:
        r"""A loss for values through which no gradient passes, such as a 0-1 error or a latency, in a training step.

        It is their mean, and its gradient is an unbiased estimate of that of the expected value, by the score function of
        the weights drawn, :math:`\theta_s \sim q(\theta | z_s)`:

        .. math:: \sum_s a_s (F_s - c_s) \, \partial \log q(\theta_s | z_s)

        with the share a of the examples that a network saw, their mean value F and a baseline c that does not depend on
        :math:`\theta_s`. It needs weights whose density given z is known, as ``distribution={"name": "noisy"}`` has them.

        Args:
            values: One number for each example of a call in this step, ``(batch,)``, in the order of the inputs; each belongs
                to the network that saw that example. While a part of a batch is dealt out before the step (``deal="batch"``):
                of examples of this part, ``(n,)``, all of its network.
            baseline: ``"leave_one_out"``: the mean value of the other networks' examples. ``"moving_average"``: that of earlier
                calls, which checkpoints keep. ``"none"``: 0. ``"auto"``: leave-one-out where values are of several networks,
                else the moving average.
            name: What the values are, where there are several kinds; each name has a moving average of its own.

        Returns:
            A scalar.

        Raises:
            RuntimeError: In evaluation mode, outside of a step, before the target was called or if weights have no density.
            TypeError: If values are no tensor.
            ValueError: If they have another length, a gradient, or are NaN or infinite.

        Example:
            >>> from lightning_hypernet import Hypernet
            >>> hypernet = Hypernet(torch.nn.Linear(4, 2), distribution="noisy", samples=3).train()
            >>> x, y = torch.randn(9, 4), torch.randint(2, (9,))
            >>> with hypernet.step():
            ...     hypernet.surrogate(hypernet(x).argmax(-1) != y).backward()
        """
        choice("baseline", baseline, BASELINES)
        instance("name", name, str, "a text")
        if not self.training:
            raise RuntimeError("surrogate() is for training, and this is evaluation mode: take values.mean()")
        if not self._steps or self.population is None:
            raise RuntimeError(
                "surrogate() needs the networks of a training step: call the target first, within training_step under the "
                "callback, or within hypernet.step()"
            )
        _check_values(values)
        networks, means, shares = self._of_networks(values)
        several = len(means) > 1
        if baseline == "leave_one_out" and not several:
            raise ValueError(
                "baseline='leave_one_out' needs values of two networks or more in one call, and these are of one: set "
                "samples=2 or more, or take baseline='moving_average'"
            )
        average = self.averages.setdefault(name, MovingAverage())
        constant: Tensor | float = 0.0 if baseline == "none" else average.value
        if baseline == "leave_one_out" or (baseline == "auto" and several):
            constant = leave_one_out(means, shares)
        average.add(float((shares * means).sum()))
        return score_function(means, self._log_density(self.population)[networks], constant, shares)

    def _of_networks(self, values: Tensor) -> tuple[slice, Tensor, Tensor]:
        """Which networks values ``(batch,)`` belong to, the mean value of each, and its share of the examples."""
        numbers = values.detach().to(torch.promote_types(values.dtype, torch.float32))
        if self.alone is not None:
            return slice(self.alone, self.alone + 1), numbers.mean()[None], numbers.new_ones(1)
        if len(values) not in self._dealt:
            seen = " or ".join(map(str, self._dealt)) or "none"
            raise ValueError(
                f"values must be one for each example that was dealt out in this step, {seen}, not {len(values)}: surrogate() "
                "takes them unreduced, in the order of the inputs"
            )
        sizes = self._dealt[len(values)]
        means = torch.stack([part.mean() for part in numbers.split(sizes)])
        return slice(len(sizes)), means, numbers.new_tensor(sizes) / len(values)

    def _log_density(self, population: Population) -> Tensor:
        """The log density of the weights of this step given their latents, ``(S,)``, the weights constants in it."""
        if self._density is None:
            weights = {name: value.detach() for name, value in population.weights.items()}
            with torch.inference_mode(False), torch.enable_grad():
                try:
                    self._density = self.generator.log_density(population.latents, weights)
                except NotImplementedError as error:
                    raise RuntimeError(
                        "surrogate() needs weights whose density given z is known, and "
                        f"distribution={self.options['distribution']!r} does not know it: set distribution={{'name': 'noisy', "
                        "'sigma': 0.1}"
                    ) from error
        return self._density


def _check_values(values: Any) -> None:
    """See that values are one finite number for each example, without a gradient."""
    instance("the values of surrogate()", values, Tensor, "a tensor, one number for each example")
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be (batch,), one for each example, not {tuple(values.shape)}: do not reduce them")
    if values.is_complex():
        raise ValueError(f"values must be real numbers, not {values.dtype}")
    if values.requires_grad:
        raise ValueError("the values have a gradient: take their mean as the loss, or give surrogate() values.detach()")
    if not bool(values.isfinite().all()):
        kind = "NaN" if bool(values.isnan().any()) else "infinite numbers"
        raise ValueError(f"the values hold {kind}: leave such examples out, or give them a number")
