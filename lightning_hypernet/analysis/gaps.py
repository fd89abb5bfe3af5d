"""Gaps: how far what a generator gives is from the best there is, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.analysis.evaluation import accuracies
from lightning_hypernet.analysis.local import Local
from lightning_hypernet.generator.latents import as_numbers
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.latent_space import LatentSpace, PopulationValue, check_values, drawn
from lightning_hypernet.metrics import Disagreement
from lightning_hypernet.population import Population
from lightning_hypernet.target.loaders import check_loader
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import instance, whole

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs ``(batch, ...)`` and targets to the mean loss of a batch, a scalar."""
_STAGES = ("sampled z", "best z", "fine-tuned")


@dataclass(frozen=True, eq=False)
class GeneratorGap:
    """What S networks lose as they are sampled, at the best z near theirs, and after all their weights were trained from there.

    Args:
        loss: ``(3, S)``, the training loss at each stage.
        accuracy: ``(3, S)``, on test data.
        disagreement: ``(3,)``, the share of test examples on which two networks disagree, the mean over all pairs.
        populations: The networks of each stage.
        steps: Steps taken over z and over weights.
    """

    loss: Tensor
    accuracy: Tensor
    disagreement: Tensor
    populations: tuple[Population, Population, Population]
    steps: tuple[int, int]

    @property
    def latent_gap(self) -> float:
        """The mean loss at sampled z above that at the best z: what a choice of z would gain."""
        return float((self.loss[0] - self.loss[1]).mean())

    @property
    def manifold_gap(self) -> float:
        """The mean loss at the best z above that of fine-tuned weights: what the generator cannot give."""
        return float((self.loss[1] - self.loss[2]).mean())

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the losses of every network; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
        axes.plot(_STAGES, self.loss, "o-", color="tab:blue", alpha=0.4)
        axes.plot(_STAGES, self.loss.mean(1), "k-")
        axes.set(ylabel="training loss", yscale="log")
        return figure, axes


def generator_gap(
    hypernet: Hypernet,
    loader: Iterable[Any],
    test: Iterable[Any],
    networks: int = 8,
    loss: Loss = F.cross_entropy,
    lr: float = 1e-3,
    every: int = 100,
    patience: int = 10,
    most: int = 2000,
    component: int | None = None,
    context: Tensor | None = None,
    seed: int = 0,
) -> GeneratorGap:
    r"""The training loss at sampled z, at the best z, and after fine-tuning the weights from there.

    .. math:: L(G(z)) \;\ge\; \min_z L(G(z)) \;\ge\; \min_\theta L(\theta), \quad \theta_0 = G(z^*)

    Both minima are local, from a sampled z, by Adam, until ten checks of 100 steps bring no gain; the best that a check met
    counts. The first difference is what is lost as z is not chosen for the loss, the counterpart of an encoder's amortisation
    gap; the second what is lost as weights lie on the manifold, the counterpart of a family's approximation gap. The generator
    is held, the target in evaluation mode.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018)
        | https://arxiv.org/abs/1801.03558

    Args:
        hypernet: The Hypernet, of a classifier.
        loader: Batches ``(inputs, labels)`` to train on, in turn; read over and over.
        test: Batches ``(inputs, labels)`` that are measured on.
        networks: S, how many networks there are.
        loss: The mean loss of a batch, of one network's outputs and the targets; its mean over the loader counts.
        lr: Learning rate of Adam.
        every: Steps between two checks.
        patience: Checks without gain that end it.
        most: Steps at most of either minimum.
        component: Of all networks; None: all components evenly.
        context: The condition, as of `Hypernet.sample`.
        seed: Of the sampled z.

    Returns:
        Losses, accuracies, disagreement and networks of the three stages.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If a number is out of range, or a loader is empty.
    """
    space, local = LatentSpace(hypernet), Local(lr, every, patience, most)
    check_loader(loader, again=True)
    check_loader(test, again=True)
    like = space.draw(whole("networks", networks), seed, component, context)
    batches = list(labelled(loader, like.z.device))
    objective = _Losses(hypernet, batches, loss)
    with evaluating(hypernet), torch.inference_mode(False), torch.enable_grad():
        u = space.free(like).requires_grad_()
        (best,), low, over_z = local.minimise(
            [u], lambda step: objective.of(space.decode(u, like), step), lambda: objective.mean(space.decode(u, like))
        )
        with torch.no_grad():
            sampled, chosen = hypernet.decode(like), space.decode(best, like)
            first = objective.mean(sampled)
        weights = {name: value.detach().clone().requires_grad_() for name, value in chosen.weights.items()}

        def at() -> Population:
            return replace(chosen, networks=chosen.networks.others(weights))

        found, last, over_weights = local.minimise(
            list(weights.values()), lambda step: objective.of(at(), step), lambda: objective.mean(at())
        )
        tuned = replace(chosen, networks=chosen.networks.others(dict(zip(weights, found, strict=True))))
    stages = (sampled, chosen, tuned)
    accuracy = torch.stack([accuracies(hypernet, one, test) for one in stages])
    disagreement = torch.tensor([_disagreement(hypernet, one, test) for one in stages])
    losses = torch.stack([first, low, last]).cpu()
    return GeneratorGap(losses, accuracy, disagreement, stages, (over_z, over_weights))


class _Losses:
    """The losses of every network of a population.

    Args:
        hypernet: The Hypernet.
        batches: Inputs and targets.
        loss: The mean loss of a batch.
    """

    def __init__(self, hypernet: Hypernet, batches: list[tuple[Tensor, Tensor]], loss: Loss) -> None:
        self.hypernet, self.batches, self.loss = hypernet, batches, loss

    def of(self, population: Population, step: int) -> Tensor:
        """The sum over networks of the losses on a step's batch, a scalar: each has the gradient of its own."""
        return self._each(population, *self.batches[step % len(self.batches)]).sum()

    def mean(self, population: Population) -> Tensor:
        """The mean loss of every network over all batches, ``(S,)``."""
        sums = [self._each(population, *batch) * len(batch[1]) for batch in self.batches]
        return torch.stack(sums).sum(0) / sum(len(targets) for _, targets in self.batches)

    def _each(self, population: Population, inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([self.loss(outputs, targets) for outputs in self.hypernet.run(population, inputs)])


@torch.no_grad()
def _disagreement(hypernet: Hypernet, population: Population, loader: Iterable[Any]) -> float:
    metric = Disagreement().to(population.latents.z.device)
    with evaluating(hypernet):
        for inputs, labels in labelled(loader, population.latents.z.device):
            metric.update(hypernet.run(population, inputs).softmax(-1), labels)
    return float(metric.compute()) if len(population) > 1 else 0.0


@dataclass(frozen=True, eq=False)
class BestResponseGap:
    """What networks for conditions lose against the best responses.

    Args:
        context: ``(n, context_dim)``, the conditions.
        generated: ``(n,)``, the mean loss over the networks that were drawn for each.
        best: ``(n,)``, the loss of the best response to each.
    """

    context: Tensor
    generated: Tensor
    best: Tensor

    @property
    def gap(self) -> Tensor:
        """The difference, ``(n,)``; 0 where the generator gives the best response."""
        return self.generated - self.best


@torch.no_grad()
def best_response_gap(
    hypernet: Hypernet,
    context: Tensor,
    best_response: Callable[[Tensor], Mapping[str, Tensor]],
    loss: PopulationValue,
    draws: int = 8,
    seed: int = 0,
) -> BestResponseGap:
    r"""The loss of networks generated for conditions above that of the best responses to them.

    .. math:: \mathbb{E}_z L(G(z, c), c) - \min_\theta L(\theta, c)

    References:
        | Stochastic Hyperparameter Optimization through Hypernetworks (Lorraine and Duvenaud, 2018)
        | https://arxiv.org/abs/1802.09419

    Args:
        hypernet: A Hypernet with conditions.
        context: ``(n, context_dim)``, the conditions c.
        best_response: Of one condition ``(context_dim,)`` the weights that minimise its loss, ``{name: shape}``, every
            generated parameter: from a closed form, or trained.
        loss: L, under the condition of each network, which ``population.latents.context`` holds: ``(S,)``.
        draws: How many z for each condition.
        seed: Of z.

    Returns:
        Both losses of every condition.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If the Hypernet has no conditions, or a response lacks a parameter or has one of another shape.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    draws, conditions = whole("draws", draws), as_numbers("context", context)
    if not hypernet.context_dim:
        raise ValueError("a best response is to a condition, and this Hypernet has none: give it conditions or context_dim")
    if conditions.ndim != 2 or conditions.shape[1] != hypernet.context_dim or not len(conditions):
        raise ValueError(f"context must be (n, {hypernet.context_dim}) with n > 0, not {tuple(conditions.shape)}")
    latents = drawn(hypernet, draws * len(conditions), seed, context=conditions.repeat_interleave(draws, 0))
    population = hypernet.decode(latents)
    own = [_response(hypernet, best_response, one) for one in conditions]
    weights = {name: torch.stack([one[name] for one in own]).to(value) for name, value in population.weights.items()}
    first = population[torch.arange(0, len(latents), draws, device=latents.z.device)]
    best = replace(first, networks=first.networks.others(weights))
    with evaluating(hypernet):
        generated = check_values("loss", loss(population), len(population)).view(-1, draws).mean(1)
        reached = check_values("loss", loss(best), len(best))
    return BestResponseGap(conditions.cpu(), generated.cpu(), reached.cpu())


def _response(
    hypernet: Hypernet, best_response: Callable[[Tensor], Mapping[str, Tensor]], condition: Tensor
) -> Mapping[str, Tensor]:
    """The weights of a best response, of the target's shapes."""
    weights = best_response(condition)
    instance("best_response", weights, Mapping, "a function that gives a mapping of weights by their names")
    for name, shape in hypernet.banks.shapes.items():
        if name not in weights or tuple(weights[name].shape) != tuple(shape):
            given = tuple(weights[name].shape) if name in weights else "missing"
            raise ValueError(f"{name} of the best response is {given}: it must be {tuple(shape)}")
    return weights
