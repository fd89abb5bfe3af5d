"""Population: the networks that were drawn together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.generator.distribution import WeightDistribution
from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.filters import FilterBanks
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.tasks import Encoded


class StackedTensors(nn.Module):
    """Named tensors ``(S, ...)``, kept as buffers, so that they follow the module and are stored with it.

    Args:
        tensors: For every name, which may hold dots, its tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name.replace(".", "/"), value)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by name."""
        return {name.replace("/", "."): value for name, value in self.named_buffers()}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the values of the tensors named."""
        for name, value in tensors.items():
            self.get_buffer(name.replace(".", "/")).copy_(value)


class StoredLatents(nn.Module):
    """Latents kept as buffers, so that they follow the module and are stored with it.

    Args:
        latents: The latents.
        context_dim: Numbers in a condition; where the latents have none, they are zeros.
    """

    z: Tensor
    component: Tensor
    context: Tensor

    def __init__(self, latents: Latents, context_dim: int = 0) -> None:
        super().__init__()
        self.register_buffer("z", latents.z.detach().clone())
        self.register_buffer(
            "component", latents.component.to(latents.z)
        )  # real numbers, which averages of weights leave alone
        given = latents.context
        self.register_buffer(
            "context", latents.z.new_zeros(len(latents), context_dim) if given is None else given.detach().clone()
        )

    def latents(self) -> Latents:
        """The latents."""
        return Latents(self.z, self.component.round().long(), self.context if self.context.shape[1] else None)


@dataclass(eq=False, repr=False)
class Population:
    """Networks drawn in one step: latents, weights, gauge-fixed weights, outputs.

    What is costly is computed when it is first read, so that nothing is computed that nobody asks for.

    Args:
        latents: What the S networks were generated from.
        networks: The networks: their weights, and the norm statistics of each where they were estimated.
        banks: The filter banks of the target.
        gauge: Maps weights to weights of the same functions, one representative for each class; and the names of the parameters
            that are wanted.
        n_components: Number of components of the prior.
        run: Calls the target once with every network; stacks the outputs to ``(S, ...)``.
        batch: The inputs of the training batch.
        examples: The example inputs of the target.
        targets: What the inputs of the training batch should map to, batch first; None if unknown.
        probes: How many examples of the batch all networks share in `outputs`.
        distribution: What made the weights of the latents.
        encoded: What an encoder made of the data sets that the networks are for; None: their latents are draws of the prior.
        sizes: How many examples each network was called with, where each ran `training_step` by itself; 0: of several sizes.
        losses: The loss of every network, ``(S,)``, where each ran `training_step` by itself; None: they ran together.
    """

    latents: Latents
    networks: Networks
    banks: FilterBanks
    gauge: Callable[[Mapping[str, Tensor], Collection[str]], Mapping[str, Tensor]]
    n_components: int = 1
    run: Callable[[Networks, Arguments], Any] | None = None
    batch: Arguments | None = None
    examples: Arguments | None = None
    targets: Any = None
    probes: int = 32
    distribution: WeightDistribution | None = None
    losses: Tensor | None = None
    encoded: Encoded | None = None
    sizes: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        components = self.latents.component.unique().tolist()
        return f"Population({len(self)} networks of {self.banks.weights:,} weights, components {components})"

    def __getitem__(self, index: slice | Tensor) -> Population:
        """A part of the population; takes a slice or a tensor of indices."""
        if not isinstance(index, (slice, Tensor)):
            raise TypeError(f"a population is indexed by a slice or a tensor, not by {type(index).__name__}")
        if isinstance(index, slice) and not len(range(len(self))[index]):
            raise ValueError(f"a population of {len(self)} networks is empty at {index}")
        return replace(
            self,
            latents=self.latents[index],
            networks=self.networks.some(index),
        )

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """``{name: (S, *shape)}`` for every generated parameter of the target."""
        return self.networks.weights

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """``{name: (S, *shape)}``, the norm statistics of every network; empty if they were not estimated."""
        return self.networks.buffers

    @cached_property
    def vectors(self) -> Tensor:
        """All weights of every network, as they are: ``(S, weights)``."""
        return torch.cat([value.reshape(len(value), -1) for value in self.weights.values()], dim=1)

    @cached_property
    def gauged(self) -> Tensor:
        """All weights of every network in their gauge-fixed form: ``(S, weights)``."""
        return torch.cat(self.gauged_parts(list(self.weights)), dim=1)

    def gauged_parts(self, names: Sequence[str]) -> list[Tensor]:
        """Some parameters of every network in their gauge-fixed form, each ``(S, numbers)``."""
        return self.parts_of(self.weights, names)

    def parts_of(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        """Some parameters of weights ``{name: (n, *shape)}`` in their gauge-fixed form, each ``(n, numbers)``."""
        gauged = self.gauge(weights, names)
        return [gauged[name].reshape(len(gauged[name]), -1) for name in names]

    @cached_property
    def outputs(self) -> Tensor:
        """Outputs of all networks on the same first examples of the training batch: ``(S, examples, ...)``.

        Raises:
            ValueError: If the population saw no batch, or the target does not return one tensor.
        """
        return self._run_on(self.batch and self.batch.head(self.probes), "it is read after a training forward")

    @cached_property
    def example_outputs(self) -> Tensor:
        """Outputs of all networks on the example inputs of the target: ``(S, examples, ...)``.

        Raises:
            ValueError: If there are no example inputs, or the target does not return one tensor.
        """
        return self._run_on(self.examples, "give the Hypernet example_inputs")

    def _run_on(self, arguments: Arguments | None, remedy: str) -> Tensor:
        if self.run is None or arguments is None:
            raise ValueError(f"the population has no inputs to run on; {remedy}")
        outputs = self.run(self.networks, arguments)
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"the target returns {type(outputs).__name__} where a diversity loss that reads outputs needs one tensor; "
                "choose one that reads weights"
            )
        return outputs

    @property
    def output_targets(self) -> Tensor:
        """What the examples behind `outputs` should map to: ``(examples, ...)``.

        Raises:
            ValueError: If there are no targets, or more or fewer than inputs.
        """
        if not isinstance(self.targets, Tensor):
            raise ValueError(
                "the population has no targets: batches must be (inputs, targets), or set `hypernet.population.targets` "
                f"by hand; they are {type(self.targets).__name__}"
            )
        if self.batch is not None and len(self.targets) != self.batch.batch:
            raise ValueError(
                f"the targets are {len(self.targets)} and the inputs {self.batch.batch}: where training_step changes the batch "
                "before it calls the target, set `hypernet.population.targets` there to those of these inputs"
            )
        return self.targets[: self.outputs.shape[1]]

    @torch.no_grad()
    def distance(self, coordinates: int | None = 1_000_000) -> Tensor:
        r"""Mean distance of two networks relative to their size, a scalar, without gradient.

        .. math:: \sqrt{\frac{2}{S - 1} \sum_i |w_i - \bar w|^2 \Big/ \frac{1}{S} \sum_i |w_i|^2}

        over the gauge-fixed vectors: 0 for copies of one network, about 1.41 for independent ones.

        Args:
            coordinates: How many coordinates of the weights are read at least, if there are more: those of whole parameters,
                the same at every call. None: all.
        """
        parts = self.gauged_parts(some_parameters(self.banks.shapes, coordinates, seed=0))
        spread = sum((part - part.mean(0)).square().sum() for part in parts) * 2 / max(len(self) - 1, 1)
        size = torch.stack([part.square().sum() for part in parts]).sum() / len(self)
        return (spread / size.clamp(min=torch.finfo(size.dtype).tiny)).sqrt()


def check_population(population: Any, shapes: Mapping[str, Any] | None = None) -> None:
    """See that networks are a population, and of a target.

    Args:
        population: What was given.
        shapes: The shapes of the target's parameters; None: of any target.

    Raises:
        TypeError: If it is none.
        ValueError: If it is of another target.
    """
    if not isinstance(population, Population):
        raise TypeError(f"the networks must be a population, as hypernet.sample(5) gives, not a {type(population).__name__}")
    if shapes is not None and population.banks.shapes != shapes:
        raise ValueError("the population is of another target: take one that this Hypernet has sampled")


def some_parameters(shapes: Mapping[str, Sequence[int]], coordinates: int | None, seed: int) -> list[str]:
    """The names of parameters, drawn as a whole, that hold as many coordinates as are wanted, or of all.

    Args:
        shapes: The shape of every parameter.
        coordinates: How many are wanted; None: all.
        seed: Of the draw.
    """
    names, sizes = list(shapes), {name: math.prod(shape) for name, shape in shapes.items()}
    if coordinates is None or sum(sizes.values()) <= coordinates:
        return names
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    shuffled = [names[index] for index in order.tolist()]
    read = itertools.accumulate(sizes[name] for name in shuffled)
    return shuffled[: next(index for index, total in enumerate(read) if total >= coordinates) + 1]
