"""Dependence: how much the weights of one layer tell of those of another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.analysis.neighbours import most_shared, needed, normal_scores, shared
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.values import guess, instance, switch, texts, whole

_CHUNK = 100
"""Networks that are there at once, of which only the weights are kept."""


@dataclass(frozen=True)
class LayerDependence:
    """Information that layers share, in nats.

    Args:
        layers: Their names.
        matrix: ``(layers, layers)``, symmetric, zeros on the diagonal.
        chance: The largest value that was seen for layers whose networks were shuffled.
        maximum: The most that the estimate gives for so many networks.
        conditional: Whether the other layers are given.
    """

    layers: tuple[str, ...]
    matrix: Tensor
    chance: float
    maximum: float
    conditional: bool = False

    @property
    def edges(self) -> list[tuple[str, str, float]]:
        """Pairs of layers above chance, and what they share, the most first."""
        pairs = itertools.combinations(range(len(self.layers)), 2)
        found = [(self.layers[one], self.layers[other], float(self.matrix[one, other])) for one, other in pairs]
        return sorted((edge for edge in found if edge[2] > self.chance), key=lambda edge: -edge[2])

    def __str__(self) -> str:
        given = ", the others given" if self.conditional else ""
        told = f"nats shared by layers{given}: chance gives up to {self.chance:.3f}, the estimate at most {self.maximum:.3f}"
        lines = [f"{one} - {other}: {value:.3f}" for one, other, value in self.edges]
        return "\n".join([told, *(lines or ["no two layers are above chance"])])

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw layers on a circle and a line for all pairs above chance; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(figsize=(4.5, 4.5), layout="constrained")
        turns = [2 * math.pi * index / len(self.layers) for index in range(len(self.layers))]
        places = {name: (math.sin(turn), math.cos(turn)) for name, turn in zip(self.layers, turns, strict=True)}
        strongest = max((edge[2] for edge in self.edges), default=1.0)
        for one, other, value in self.edges:
            (x, y), (to_x, to_y) = places[one], places[other]
            axes.plot([x, to_x], [y, to_y], color="tab:blue", linewidth=1 + 5 * value / strongest, alpha=0.6, zorder=1)
            axes.annotate(f"{value:.2f}", ((x + to_x) / 2, (y + to_y) / 2), ha="center", va="center", fontsize=8, zorder=2)
        xs, ys = zip(*places.values(), strict=True)
        axes.scatter(xs, ys, s=900, color="white", edgecolor="black", zorder=3)
        for name, place in places.items():
            axes.annotate(name, place, ha="center", va="center", fontsize=8, zorder=4)
        given = ", others given" if self.conditional else ""
        axes.set_title(f"nats shared{given}\nchance up to {self.chance:.2f}, estimate at most {self.maximum:.2f}", fontsize=9)
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
        axes.axis("off")
        return figure, axes


def layer_dependence(
    networks: Hypernet | Population,
    samples: int = 2000,
    layers: Sequence[str] | None = None,
    directions: int = 8,
    conditional: bool = False,
    gauge: bool = True,
    neighbours: int = 3,
    shuffles: int = 100,
    seed: int = 0,
) -> LayerDependence:
    r"""Mutual information of the weights of every two layers, over sampled networks, as a graph.

    Each layer is read in its leading principal components. Half of the networks choose the direction of each of two layers
    along which they correlate most, their first canonical pair (u, v); the other half give the estimate of Kraskov, Stögbauer
    and Grassberger for these two numbers:

    .. math:: I(W_a; W_b) \geq I(u^\top W_a; v^\top W_b)

    It is a lower bound, up to the estimate's error: what shows along no line is not seen, and between layers made of one z the
    information itself may have no maximum. As many pairs as there are, one in 101 independent ones lies above the `chance` of
    100 shuffles. Networks whose layers are drawn independently, as of ``distribution="mean_field"``, share nothing.

    With `conditional` the other layers are given, of each the two directions along which it correlates most with either of the
    pair: what two layers share beyond them, as in a Markov network. Estimates given many numbers are drawn towards 0, and
    `chance` is a rough guide then.

    The gauge may move the size of a layer's filters into the next layer, and make layers dependent that were drawn
    independently. ``gauge=False`` reads weights as they are drawn.

    Args:
        networks: A Hypernet, or networks that were sampled already.
        samples: How many networks are drawn of a Hypernet.
        layers: Names of filter banks, as `Hypernet.summary` lists them; None: all.
        directions: Principal components of each layer.
        conditional: Whether the other layers are given; needs ennemi.
        gauge: Whether weights are seen through the gauge.
        neighbours: The neighbour that estimates look at.
        shuffles: How often networks are shuffled for `chance`, over all pairs in turn.
        seed: Of the shuffles.

    Returns:
        The graph.

    Raises:
        TypeError: If these are no networks.
        ValueError: If a number is out of range, there is no such layer, there are fewer than two layers, weights are NaN or
            infinite, or scikit-learn, or ennemi, is not installed.

    References:
        | Estimating Mutual Information (Kraskov, Stögbauer and Grassberger, 2004)
        | https://doi.org/10.1103/PhysRevE.69.066138
        | Learning Non-parametric Markov Networks with Mutual Information (Leppä-aho, Räisänen, Yang and Roos, 2017)
        | https://arxiv.org/abs/1708.02497
    """
    instance("networks", networks, (Hypernet, Population), "a Hypernet or a population, as hypernet.sample(1000) gives")
    samples, directions = whole("samples", samples, 20), whole("directions", directions)
    neighbours, shuffles, seed = whole("neighbours", neighbours), whole("shuffles", shuffles), whole("seed", seed, None)
    conditional, gauge = switch("conditional", conditional), switch("gauge", gauge)
    if conditional:
        needed("ennemi", "ennemi", "information")
    weights = _weights(networks, samples, layers, gauge)
    count = len(next(iter(weights.values())))
    if len(weights) < 2 or count // 2 <= neighbours:
        raise ValueError(
            f"dependence needs two layers or more and more than {2 * neighbours + 1} networks, not {len(weights)} and {count}"
        )
    half, names = count // 2, tuple(weights)
    parts = {name: _components(name, value, half, min(directions, max(half // 10, 1))) for name, value in weights.items()}
    pairs = list(itertools.combinations(names, 2))
    lines = {pair: _canonical(parts[pair[0]], parts[pair[1]], half) for pair in pairs}
    lines |= {(other, one): (v, u) for (one, other), (u, v) in lines.items()}
    given = {pair: _given(pair, names, lines) if conditional else None for pair in pairs}
    matrix = torch.zeros(len(names), len(names), dtype=torch.float64)
    for one, other in pairs:
        value = shared(*lines[one, other], neighbours, seed, given[one, other])
        at = names.index(one), names.index(other)
        matrix[at] = matrix[at[::-1]] = value
    source, chance = torch.Generator().manual_seed(seed), 0.0
    for _, pair in zip(range(shuffles), itertools.cycle(pairs), strict=False):
        u, v = lines[pair]
        shuffled = u[torch.randperm(len(u), generator=source)]
        chance = max(chance, shared(shuffled, v, neighbours, seed, given[pair]))
    return LayerDependence(names, matrix, chance, most_shared(count - half, neighbours), conditional)


@torch.no_grad()
def _weights(networks: Hypernet | Population, samples: int, layers: Sequence[str] | None, gauge: bool) -> dict[str, Tensor]:
    """The weights of layers, ``{name: (n, numbers)}``, float64, on the CPU."""
    banks = {bank.name: bank for bank in networks.banks}
    names = list(banks) if layers is None else list(texts("layers", layers, "name of a layer"))
    for name in names:
        if name not in banks:
            raise ValueError(f"there is no layer {name!r}; there are {', '.join(banks)}{guess(name, banks)}")
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    wanted = {slot.parameter for name in names for slot in banks[name].slots}
    for first in range(0, samples if isinstance(networks, Hypernet) else 1, _CHUNK):
        drawn = networks.sample(min(_CHUNK, samples - first)) if isinstance(networks, Hypernet) else networks
        seen = drawn.gauge(drawn.weights, wanted) if gauge else drawn.weights
        for name in found:
            found[name].append(banks[name].flatten(seen).flatten(1).cpu().double())
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    if odd := [name for name, value in joined.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"weights of {', '.join(odd)} hold NaN or infinite numbers: check the generator")
    return joined


def _components(name: str, weights: Tensor, half: int, directions: int) -> Tensor:
    """Leading principal components of ``(n, numbers)`` as of the first half, where their variances are 1."""
    mean = weights[:half].mean(0)
    _, sizes, right = torch.linalg.svd(weights[:half] - mean, full_matrices=False)
    kept = min(directions, int((sizes > 1e-10 * weights[:half].norm()).sum()))
    if not kept:
        raise ValueError(f"the weights of {name} are the same in all networks, and share nothing: leave it out of layers")
    scaled: Tensor = (weights - mean) @ right[:kept].T / sizes[:kept] * math.sqrt(half)
    return scaled


def _canonical(one: Tensor, other: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """The first canonical pair of components, found on the first half: of the rest, as normal scores, ``(n - half,)`` each."""
    left, _, right = torch.linalg.svd(one[:half].T @ other[:half])
    return normal_scores(one[half:] @ left[:, 0]), normal_scores(other[half:] @ right[0])


def _given(pair: tuple[str, str], names: Sequence[str], lines: dict[tuple[str, str], tuple[Tensor, Tensor]]) -> Tensor:
    """Of every layer but two, what correlates most with either: ``(n, 2 (layers - 2))``."""
    columns = [lines[name, one][0] for name in names if name not in pair for one in pair]
    return torch.stack(columns, 1) if columns else torch.zeros(len(lines[pair][0]), 0)
