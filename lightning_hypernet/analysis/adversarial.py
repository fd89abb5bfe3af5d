"""Adversarial examples: made against one sampled network, and what an ensemble makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.analysis.batches import labelled
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.metrics.base import checked_labels
from lightning_hypernet.population import Population
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.target.reduction import reduce_outputs
from lightning_hypernet.values import choice, instance, real, reals, whole

Model = Callable[[Tensor], Tensor]
"""Maps inputs to logits."""
Attack = Literal["targeted", "fgsm", "pgd"]


def targeted_sign(model: Model, inputs: Tensor, targets: Tensor, size: float) -> Tensor:
    """One step of a size along the sign of the gradient of the target class's probability, as the paper attacks.

    The gradient is that of the logarithm, which has the same sign and does not vanish for a network that is sure.

    Args:
        model: Inputs to logits ``(batch, classes)``.
        inputs: ``(batch, ...)``.
        targets: ``(batch,)``, the classes to be predicted.
        size: Length of the step in each number of the input.

    Returns:
        The attacked inputs.
    """
    size = real("size", size, 0)
    return inputs + size * _direction(model, inputs, lambda logits: -F.cross_entropy(logits, targets, reduction="sum"))


def fgsm(model: Model, inputs: Tensor, labels: Tensor, size: float) -> Tensor:
    """One step along the sign of the gradient of the loss, away from the label.

    References:
        | Explaining and Harnessing Adversarial Examples (Goodfellow et al., 2014)
        | https://arxiv.org/abs/1412.6572

    Args:
        model: Inputs to logits ``(batch, classes)``.
        inputs: ``(batch, ...)``.
        labels: ``(batch,)``.
        size: Length of the step in each number of the input.

    Returns:
        The attacked inputs.
    """
    size = real("size", size, 0)
    return inputs + size * _direction(model, inputs, lambda logits: F.cross_entropy(logits, labels, reduction="sum"))


def pgd(model: Model, inputs: Tensor, labels: Tensor, size: float, steps: int = 10) -> Tensor:
    """Several smaller such steps, each brought back to within the size; 2.5 sizes of way in all.

    References:
        | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2017)
        | https://arxiv.org/abs/1706.06083

    Args:
        model: Inputs to logits ``(batch, classes)``.
        inputs: ``(batch, ...)``.
        labels: ``(batch,)``.
        size: Largest change of each number of the input.
        steps: Number of steps.

    Returns:
        The attacked inputs.
    """
    size, steps = real("size", size, 0), whole("steps", steps)
    attacked = inputs
    for _ in range(steps):
        attacked = inputs + (fgsm(model, attacked, labels, 2.5 * size / steps) - inputs).clamp(-size, size)
    return attacked


def _direction(model: Model, inputs: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(model(inputs)), inputs)
    return gradient.sign()


@dataclass(frozen=True)
class Adversarial:
    """Shares of examples that attacks bring to a wrong prediction, of those that were right before.

    Args:
        sizes: ``(n,)``, of the attacks.
        attacked: ``(n,)``, for the network or ensemble that was attacked.
        transferred: ``(n,)``, for another ensemble that is given the same examples; those it had wrong without an attack count.
        clean: Share of all examples that the attacked one gets right.
    """

    sizes: Tensor
    attacked: Tensor
    transferred: Tensor
    clean: float

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw both shares over the size; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
        axes.plot(self.sizes, 100 * self.attacked, marker="o", label="attacked")
        axes.plot(self.sizes, 100 * self.transferred, marker="o", label="fresh ensemble")
        axes.set(xlabel="size of the attack", ylabel="success, %", ylim=(0, 100))
        axes.legend()
        return figure, axes


def adversarial(
    hypernet: Hypernet,
    loader: Iterable[Any],
    sizes: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
    attack: Attack = "targeted",
    attacked: int = 1,
    ensemble: int = 100,
) -> Adversarial:
    """Attack a sampled network, or an ensemble itself, and give a fresh ensemble the same examples.

    Every batch meets networks of its own. Examples that the attacked one gets wrong are left out; a success is a prediction
    other than the label. Ensembles predict by their mean probability.

    References:
        | A Generative Model for Sampling High-Performance and Diverse Weights for Neural Networks (Deutsch et al., 2019)
        | https://arxiv.org/abs/1905.02898, section 4; there one network is attacked towards a random class, inputs lie in
          [0, 1] and are not clipped

    Args:
        hypernet: The Hypernet.
        loader: Batches ``(inputs, labels)``.
        sizes: Sizes of the attacks, in units of the inputs.
        attack: ``"targeted"`` at a random other class, untargeted ``"fgsm"`` or ``"pgd"``.
        attacked: Members of what is attacked; 1: a single network.
        ensemble: Members of the fresh ensemble.

    Returns:
        The shares.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If a size or number is out of range, there is no such attack, the loader is empty, labels are no classes, or
            the attacked network gets no example right.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    choice("attack", attack, get_args(Attack))
    sizes = reals("sizes", sizes, 0)
    attacked, ensemble = whole("attacked", attacked), whole("ensemble", ensemble)
    device = hypernet.members.device
    succeeded = torch.zeros(2, len(sizes), dtype=torch.double)
    right = count = 0
    with evaluating(hypernet):
        for inputs, labels in labelled(loader, device):
            with torch.no_grad():
                source, other = (_classifier(hypernet, hypernet.sample(n)) for n in (attacked, ensemble))
                logits = source(inputs)
                labels = checked_labels(labels, logits)
                chosen = logits.argmax(-1) == labels
                count += len(labels)
                right += int(chosen.sum())
            inputs, labels = inputs[chosen], labels[chosen]
            if not len(labels):
                continue
            shift = torch.randint(1, logits.shape[-1], labels.shape, device=device)
            towards = (labels + shift) % logits.shape[-1]
            for index, size in enumerate(sizes):
                if attack == "targeted":
                    spoilt = targeted_sign(source, inputs, towards, size)
                else:
                    spoilt = (fgsm if attack == "fgsm" else pgd)(source, inputs, labels, size)
                with torch.no_grad():
                    for row, model in enumerate((source, other)):
                        succeeded[row, index] += (model(spoilt).argmax(-1) != labels).sum().cpu()
    if not right:
        raise ValueError("the attacked network gets no example right: train it first, or check the loader")
    shares = (succeeded / right).float()
    return Adversarial(torch.tensor(sizes), shares[0], shares[1], right / count)


def _classifier(hypernet: Hypernet, population: Population) -> Model:
    """The logarithm of the mean probability of a population."""

    def classify(inputs: Tensor) -> Tensor:
        joined: Tensor = reduce_outputs(hypernet.run(population, inputs), "log_mean_prob")
        return joined

    return classify
