"""Search in z: networks with a wanted property, the generator held as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.latent_space import LatentSpace, PopulationValue, check_values
from lightning_hypernet.population import Population
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import real, whole


@dataclass(frozen=True, eq=False)
class LatentSearch:
    """What a search in z has found.

    Args:
        population: Networks, the best first.
        values: ``(S,)``, their objective, falling.
        before: ``(S,)``, the objective where each one's search began; of a surrogate, that of its first networks.
        path: ``(steps + 1, S)``, the objective at every step of every network's search; of a surrogate ``(evaluations,)``, in
            the order of evaluation.
        evaluations: How many networks the objective was computed for.
        rescored: ``(S,)``, what `rescore` says of the networks; None without it.
    """

    population: Population
    values: Tensor
    before: Tensor
    path: Tensor
    evaluations: int
    rescored: Tensor | None = None

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the objective over the evaluations; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(layout="constrained")
        if self.path.ndim == 2:
            axes.plot(self.path, color="tab:blue", alpha=0.4, linewidth=1)
        else:
            axes.plot(self.path, ".", color="tab:blue")
            axes.plot(self.path.cummax(0).values, color="tab:orange")
        axes.set(xlabel="step" if self.path.ndim == 2 else "evaluation", ylabel="objective")
        return figure, axes


def search(
    hypernet: Hypernet,
    objective: PopulationValue,
    starts: int = 16,
    steps: int = 150,
    lr: float = 0.05,
    noise: float = 0.01,
    prior_weight: float = 0.0,
    rescore: PopulationValue | None = None,
    component: int | None = None,
    context: Tensor | None = None,
    seed: int = 0,
) -> LatentSearch:
    r"""Climb an objective over z by its gradient, from many draws of the prior at once.

    .. math:: z \leftarrow z + \alpha \, \partial_z \bigl[ J(G(z)) + \lambda \log p(z) \bigr] + \epsilon

    with the steps of Adam and normal noise, whose deviation falls to zero. A prior on a bounded set, such as the uniform one,
    keeps z within it. Every search is one network's own; the best z that it met counts, where best is by what is climbed. The
    generator is in evaluation mode, as is the target, and nothing of the Hypernet changes.

    The value of a network that was searched for is too good, as the search has fitted the data of its objective: `rescore`
    tells what it is worth on others.

    References:
        | Generating and designing DNA with deep generative models (Killoran et al., 2017), https://arxiv.org/abs/1712.06148
        | Automatic Chemical Design Using a Data-Driven Continuous Representation of Molecules (Gómez-Bombarelli et al., 2018)
        | https://doi.org/10.1021/acscentsci.7b00572

    Args:
        hypernet: The Hypernet.
        objective: J, high = wanted: of a population one number for every network, ``(S,)``, differentiable and of one network
            each. ``hypernet.run(population, inputs)`` gives the outputs to compute it from.
        starts: S, how many searches there are.
        steps: Steps of each.
        lr: Learning rate of Adam.
        noise: Standard deviation of the noise at the first step.
        prior_weight: :math:`\lambda`, the weight of the log density of z in nats; 0: the prior needs no density.
        rescore: As the objective, on data that it does not see; no gradient is needed.
        component: Of all starts; None: all components evenly.
        context: The condition, as of `Hypernet.sample`.
        seed: Of starts and noise.

    Returns:
        The networks found, the best by the objective first.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If a number is out of range, or the objective gives no number for every network, or none with a gradient.

    Example:
        >>> from lightning_hypernet import Hypernet
        >>> hypernet = Hypernet(torch.nn.Linear(4, 2))
        >>> found = search(hypernet, lambda population: population.weights["bias"].sum(1), starts=3, steps=5)
        >>> bool((found.values >= found.before).all())
        True
    """
    space = LatentSpace(hypernet)
    starts, steps = whole("starts", starts), whole("steps", steps)
    lr, noise, prior_weight = real("lr", lr, 0, above=True), real("noise", noise, 0), real("prior_weight", prior_weight, 0)
    check_functions(objective, rescore)
    like = space.draw(starts, seed, component, context)
    with evaluating(hypernet), torch.inference_mode(False), torch.enable_grad():
        best, path, value = _climb(space, objective, like, steps, lr, noise, prior_weight, seed)
        order = value.argsort(descending=True)
        rescored, population = rescored_networks(hypernet, rescore, space.latents(best, like)[order])
    path = path[:, order].cpu()
    return LatentSearch(population, value[order].cpu(), path[0], path, starts * (steps + 1), rescored)


def _climb(
    space: LatentSpace,
    objective: PopulationValue,
    like: Latents,
    steps: int,
    lr: float,
    noise: float,
    prior_weight: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best free numbers that every search met, the objective along its path ``(steps + 1, S)``, and at the best."""
    u = space.free(like).requires_grad_()
    optimizer = Adam([u], lr=lr, maximize=True)
    source = torch.Generator().manual_seed(seed)
    best, highest, value = u.detach().clone(), u.new_full((len(u),), -torch.inf), u.new_zeros(len(u))
    path = []
    for step in range(steps + 1):
        values = check_values("objective", objective(space.decode(u, like)), len(u))
        if not values.requires_grad:
            raise ValueError("the objective has no gradient with respect to z: don't detach it, or use search_surrogate()")
        climbed = values + prior_weight * space.log_prob(u, like) if prior_weight else values
        path.append(values.detach())
        better = climbed.detach() > highest
        highest = torch.where(better, climbed.detach().to(highest), highest)
        value = torch.where(better, values.detach().to(value), value)
        best[better] = u.detach()[better]
        if step == steps:
            break
        (u.grad,) = torch.autograd.grad(climbed.sum(), u)
        optimizer.step()
        with torch.no_grad():
            u += noise * (1 - step / steps) * torch.randn(u.shape, generator=source, dtype=u.dtype).to(u)
    return best, torch.stack(path), value


def rescored_networks(
    hypernet: Hypernet, rescore: PopulationValue | None, latents: Latents
) -> tuple[Tensor | None, Population]:
    """What a function says of the networks of latents, if there is one, and the networks, without gradients."""
    with torch.no_grad():
        population = hypernet.decode(latents.map(torch.Tensor.detach))
        if rescore is None:
            return None, population
        return check_values("rescore", rescore(population), len(population)).cpu(), population


def check_functions(objective: Any, rescore: Any) -> None:
    """See that the functions of a search are functions.

    Raises:
        TypeError: If they are not.
    """
    for name, value in (("objective", objective), ("rescore", rescore)):
        if not callable(value) and (name == "objective" or value is not None):
            raise TypeError(f"{name} must be a function of a population, not {value!r}")
