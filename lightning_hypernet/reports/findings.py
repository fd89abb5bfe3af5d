"""Findings: what a report tells of a Hypernet, measured once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.analysis.averaging import Averaging, averaging
from lightning_hypernet.analysis.images import FilterImages, filter_images
from lightning_hypernet.analysis.paths import Paths, paths
from lightning_hypernet.analysis.scatter import Scatter, scatter, weights_of
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.reports.randomness import undrawn
from lightning_hypernet.reports.scoring import Batch, Scoring, kind_of, tensor_of, wanted_of
from lightning_hypernet.reports.tallies import ClassTally, NumberTally
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.loaders import check_loader
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.target.reduction import check_reduction
from lightning_hypernet.values import instance

_EXAMPLES = 512
"""Examples that the analyses read, which run many networks."""
_SCATTERED, _LEAST, _NUMBERS = 300, 20, 1 << 26
"""Networks of the scatter, at most and at least, and the weights that all of them may have."""
_COUNTS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Layer:
    """How the networks differ in one bank.

    Args:
        name: Name of the bank.
        filters: How many filters.
        size: Numbers in a filter.
        spread: Root mean square of the weights' deviation from their mean over the networks, over that of the weights.
    """

    name: str
    filters: int
    size: int
    spread: float


@dataclass
class Findings:
    """What was measured.

    Args:
        kind: ``"classes"``, ``"numbers"``, ``"outputs"`` of which nobody knows what is right, or ``"weights"`` alone.
        networks: How many networks.
        examples: How many examples; of maps how many places.
        figures: The metrics, by name.
        members: The figures of every network.
        layers: The spread in every bank.
        gauged: Whether the cosines are those of weights whose gauge is fixed.
        disagreement: ``(S, S)``, of classes.
        reliability: ``(bins, 3)``, of classes: examples, confidence, accuracy.
        points: ``(n, 3)``, of numbers: what is right, the mean of the members, their standard deviation.
        scatter: Principal components of many networks.
        averaging: Accuracy over the number of networks.
        paths: Accuracy on the way between networks.
        images: Filters of networks, if the target has some that are images.
        left_out: Analyses that could not be made, with the reason.
    """

    kind: str
    networks: int
    examples: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    members: list[dict[str, float]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    gauged: bool = False
    disagreement: Tensor | None = None
    reliability: Tensor | None = None
    points: Tensor | None = None
    scatter: Scatter | None = None
    averaging: Averaging | None = None
    paths: Paths | None = None
    images: FilterImages | None = None
    left_out: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def measure(
    hypernet: Hypernet,
    loader: Iterable[Any] | None,
    batches: int | None = None,
    deep: bool = True,
    targets: Callable[[Any], Any] | None = None,
) -> Findings:
    """Measure the members of a Hypernet; its mode and all random numbers are left as they are.

    Args:
        hypernet: The Hypernet.
        loader: Batches that end with their labels or targets; None: the weights alone are looked at.
        batches: How many batches are read; None: all.
        deep: Whether the analyses are made that draw networks of their own.
        targets: Gives the targets of a batch, where they are not its last part, nor named as targets or labels.

    Returns:
        The findings.

    Raises:
        TypeError: If this is no Hypernet, the loader gives no batches, or `targets` is no function or gives no tensor.
        ValueError: If the loader is empty, or labels are no classes.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    if targets is not None and not callable(targets):
        raise TypeError(f"targets must be a function that gives the targets of a batch, not {targets!r}")
    if loader is not None:
        check_loader(loader, part=batches is not None)
    with evaluating(hypernet), undrawn(hypernet, loader):
        population = hypernet.member_population()
        found = Findings("weights", len(population))
        kept: list[Any] = []
        if loader is not None:
            found, kept = _read(hypernet, population, islice(loader, batches), targets)
        found.layers = _layers(hypernet, population)
        _add_cosines(hypernet, found, population)
        if deep:
            _analyse(hypernet, found, population, kept)
    return found


def _read(
    hypernet: Hypernet, population: Population, batches: Iterable[Any], targets: Callable[[Any], Any] | None
) -> tuple[Findings, list[Any]]:
    """What the members make of all batches, and the first of these for the analyses."""
    scoring = Scoring(len(population), check_reduction(hypernet.reduce)[1])
    kept: list[Any] = []
    examples = 0
    device = population.latents.z.device
    for batch in batches:
        arguments = next(iter(hypernet.executor.read([batch], device)))
        hypernet.see(arguments)
        raw = hypernet.executor.stacked(population.networks, arguments)
        outputs = tensor_of(raw)
        if outputs is None:
            left_out = {"outputs": f"the target returns {kind_of(raw)}, and a tensor of real numbers is measured"}
            return Findings("weights", len(population), left_out=left_out), []
        wanted = wanted_of(batch, targets)
        if wanted is None and isinstance(batch, Mapping):
            scoring.reason = f"in a batch of {', '.join(map(str, batch))} nothing is named targets: pass targets="
        said = scoring.add(outputs, wanted)
        if examples < _EXAMPLES and raw is outputs and _can_be_analysed(batch, said, targets):
            kept.append(batch)
            examples += outputs.shape[1]
    kind, tally = scoring.found()
    left_out = {"figures": scoring.reason} if scoring.reason else {}
    found = Findings(kind, len(population), tally.count, tally.figures(), tally.members(), left_out=left_out)
    if isinstance(tally, ClassTally):
        found.disagreement = tally.disagreement() if len(population) > 1 else None
        found.reliability = tally.reliability()
    elif isinstance(tally, NumberTally) and tally.right:
        found.points = tally.points
    return found, kept


def _can_be_analysed(batch: Any, said: Batch, targets: Callable[[Any], Any] | None) -> bool:
    """Whether a batch is inputs and their classes, as the analyses take it: one for every example."""
    pair = targets is None and isinstance(batch, (tuple, list)) and len(batch) == 2
    return pair and said.kind == "classes" and said.classes is not None and batch[1].shape == said.classes[1].shape


def _layers(hypernet: Hypernet, population: Population) -> list[Layer]:
    layers = []
    for bank in hypernet.banks:
        weights = weights_of(hypernet, population, bank.name, None).double()
        scale = weights.square().mean().sqrt().clamp(min=1e-30)
        spread = float((weights - weights.mean(0)).square().mean().sqrt() / scale)
        layers.append(Layer(bank.name, bank.filters, bank.filter_size, spread))
    return layers


def _add_cosines(hypernet: Hypernet, found: Findings, population: Population) -> None:
    """The mean cosine of every network's weights with the others', gauge-fixed where there is a gauge."""
    count = len(population)
    found.members = found.members or [{} for _ in range(count)]
    if count < 2:
        return
    gauged = torch.cat(population.gauged_parts(list(population.weights)), dim=1)  # anew, since inputs may be known now
    found.gauged = hypernet.symmetries.fixed
    products = (gauged @ gauged.T).double()
    lengths = products.diagonal().sqrt().clamp(min=1e-30)
    cosines = (products / lengths / lengths[:, None]).fill_diagonal_(0).sum(1) / (count - 1)
    for row, cosine in zip(found.members, cosines, strict=True):
        row["cosine"] = float(cosine)
    found.figures["weight_cosine"] = float(cosines.mean())


def _analyse(hypernet: Hypernet, found: Findings, population: Population, kept: list[Any]) -> None:
    """Make the analyses that can be made, and note why others can't."""
    classes = found.kind == "classes"
    kernels = [name for name, shape in hypernet.banks.shapes.items() if len(shape) == 4 and min(shape[2:]) > 1]
    networks = min(_SCATTERED, max(_LEAST, _NUMBERS // hypernet.banks.weights))
    wanted: dict[str, Any] = {"scatter": lambda: scatter(hypernet, networks, 2)}
    if kernels:
        wanted["images"] = lambda: filter_images(hypernet, kernels[0], samples=12)
    if classes and kept:
        wanted["paths"] = lambda: paths(hypernet, kept, pairs=4, points=13)
        family = population[population.latents.component == population.latents.component.mode().values]
        training = _training(hypernet)
        if hypernet.executor.statistics and not training:
            found.left_out["averaging"] = "averages of networks with norm statistics need training data"
        elif len(family) > 1:
            counts = sorted({*(count for count in _COUNTS if count <= len(family)), len(family)})
            wanted["averaging"] = lambda: averaging(hypernet.ensemble(family), kept, counts, training or None)
    for name, make in wanted.items():
        try:
            setattr(found, name, make())
        except Exception as error:  # a picture less is better than no page
            found.left_out[name] = str(error).partition("\n")[0] or type(error).__name__


def _training(hypernet: Hypernet) -> list[Arguments]:
    """Some of the last training inputs, for the norm statistics of averages; none if none are known."""
    chosen: list[Arguments] = []
    for arguments in hypernet.members.recent.on(hypernet.members.device):
        chosen.append(arguments)
        if sum(one.batch for one in chosen) >= _EXAMPLES:
            break
    return chosen
