"""Findings: what a report tells of a Hypernet, measured once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
from lightning_hypernet.reports.tallies import ClassTally, NumberTally, as_classes, as_numbers, first_tensor
from lightning_hypernet.target.loaders import check_loader
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.training_step import targets_of
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
        spread: Root mean square of the deviation from the mean network, over that of the weights.
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
    disagreement: Tensor | None = None
    reliability: Tensor | None = None
    points: Tensor | None = None
    scatter: Scatter | None = None
    averaging: Averaging | None = None
    paths: Paths | None = None
    images: FilterImages | None = None
    left_out: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def measure(hypernet: Hypernet, loader: Iterable[Any] | None, batches: int | None = None, deep: bool = True) -> Findings:
    """Measure the members of a Hypernet; its mode and its random numbers are left as they are.

    Args:
        hypernet: The Hypernet.
        loader: Batches with their labels or targets; None: the weights alone are looked at.
        batches: How many batches are read; None: all.
        deep: Whether the analyses are made that draw networks of their own.

    Returns:
        The findings.

    Raises:
        TypeError: If this is no Hypernet, or the loader gives no batches.
        ValueError: If the loader is empty, or labels are no classes.
    """
    instance("hypernet", hypernet, Hypernet, "a Hypernet")
    if loader is not None:
        check_loader(loader, part=batches is not None)
    with evaluating(hypernet), _same_draws(hypernet):
        population = hypernet.member_population()
        found = Findings("weights", len(population))
        kept: list[Any] = []
        if loader is not None:
            found, kept = _read(hypernet, population, islice(loader, batches))
        found.layers = _layers(hypernet, population)
        _add_cosines(found, population)
        if deep:
            _analyse(hypernet, found, population, kept)
    return found


@contextmanager
def _same_draws(hypernet: Hypernet) -> Iterator[None]:
    """Within, networks may be drawn; training goes on as if none had been."""
    before = hypernet.prior.draws
    try:
        yield
    finally:
        hypernet.prior.draws = before


def _read(hypernet: Hypernet, population: Population, batches: Iterable[Any]) -> tuple[Findings, list[Any]]:
    """What the members make of all batches, and the first of these for the analyses."""
    tally: ClassTally | NumberTally | None = None
    kept: list[Any] = []
    examples = 0
    device = population.latents.z.device
    for batch in batches:
        arguments = next(iter(hypernet.executor.read([batch], device)))
        outputs = first_tensor(hypernet.executor.stacked(population.networks, arguments))
        targets = targets_of(batch)
        if outputs is None:
            return Findings(
                "weights", len(population), left_out={"outputs": "the target returns no tensor of real numbers"}
            ), []
        targets = targets.to(outputs.device) if isinstance(targets, Tensor) else targets
        classes = as_classes(outputs, targets) if not isinstance(tally, NumberTally) else None
        if classes is not None:
            tally = tally or ClassTally(len(population), outputs.shape[2], outputs.device)
            tally.add(*classes)
        elif isinstance(tally, ClassTally):
            raise ValueError("some batches of the loader have labels and some do not; give all of them one kind of labels")
        else:
            tally = tally or NumberTally(len(population))
            tally.add(*(as_numbers(outputs, targets) or (outputs.flatten(1), None)))
        if outputs.ndim == 3 and examples < _EXAMPLES and isinstance(batch, (tuple, list)) and len(batch) == 2:
            kept.append(batch)
            examples += outputs.shape[1]
    if tally is None or not tally.count:
        raise ValueError("the loader is empty: there is nothing to measure on")
    if isinstance(tally, ClassTally):
        disagreement = tally.disagreement() if len(population) > 1 else None
        return Findings(
            "classes", len(population), tally.count, tally.figures(), tally.members(), disagreement=disagreement,
            reliability=tally.reliability(),
        ), kept  # fmt: skip
    points = tally.points if tally.right else None
    kind = "numbers" if tally.right else "outputs"
    return Findings(kind, len(population), tally.count, tally.figures(), tally.members(), points=points), kept


def _layers(hypernet: Hypernet, population: Population) -> list[Layer]:
    layers = []
    for bank in hypernet.banks:
        weights = weights_of(hypernet, population, bank.name, None).double()
        scale = weights.square().mean().sqrt().clamp(min=1e-30)
        spread = float((weights - weights.mean(0)).square().mean().sqrt() / scale)
        layers.append(Layer(bank.name, bank.filters, bank.filter_size, spread))
    return layers


def _add_cosines(found: Findings, population: Population) -> None:
    """The mean cosine of every network's gauge-fixed weights with the others'."""
    count = len(population)
    found.members = found.members or [{} for _ in range(count)]
    if count < 2:
        return
    products = (population.gauged @ population.gauged.T).double()
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
        if hypernet.executor.statistics.possible:
            found.left_out["averaging"] = "averages of networks with norm statistics need training data"
        elif len(population) > 1:
            counts = sorted({*(count for count in _COUNTS if count <= len(population)), len(population)})
            wanted["averaging"] = lambda: averaging(hypernet.ensemble(population), kept, counts)
    for name, make in wanted.items():
        try:
            setattr(found, name, make())
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            found.left_out[name] = str(error).partition("\n")[0]
