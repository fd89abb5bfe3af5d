"""Random symmetry transformations, and what must hold under them, for any module."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_hypernet import GeneratorConfig, Hypernet
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.symmetry.gauge import ComposedGauge, PermutationGauge, ScaleGauge, own_scales
from lightning_hypernet.symmetry.order import Block
from lightning_hypernet.symmetry.scale import ChannelGroups
from lightning_hypernet.symmetry.symmetries import Symmetries
from lightning_hypernet.target.filters import find_filters


@dataclass
class Report:
    """Relative errors of the three properties, and how much is fixed."""

    groups: ChannelGroups
    blocks: list[Block]
    transformed: float
    gauged: float
    invariant: float
    filters: float
    rows: float

    @property
    def channels(self) -> int:
        """Number of channels that may be permuted."""
        return sum(block.size for block in self.blocks)

    def __str__(self) -> str:
        errors = f"{self.transformed:.0e} {self.gauged:.0e} {self.invariant:.0e}"
        share = f"filters {self.filters:.3f} rows {self.rows:.3f} permutable {self.channels}"
        return f"{share} errors {errors} pinned by {', '.join(self.groups.pinned)}"


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-300)).item()


def run(module: nn.Module, weights: dict[str, Tensor], inputs: tuple) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        output = torch.func.functional_call(module, {name: value[0] for name, value in weights.items()}, inputs)
    return torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)])


def random_weights(module: nn.Module, n: int = 1) -> dict[str, Tensor]:
    return {
        name: parameter.detach()[None]
        + torch.randn(n, *parameter.shape).double() * (parameter.std(correction=0).detach() + 0.02)
        for name, parameter in module.named_parameters()
    }


def prepared(module: nn.Module, eps: float | None = 1e-30) -> nn.Module:
    """In double precision and training mode; the eps of norm layers, which no scaling can follow, is taken out unless None."""
    for child in module.modules():
        if eps is not None and isinstance(getattr(child, "eps", None), float):
            child.eps = eps
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
        if isinstance(getattr(child, "drop_rate", None), float):
            child.drop_rate = 0.0  # what timm's models hand to F.dropout
    return module.double().train()


def shares(module: nn.Module, groups: ChannelGroups) -> tuple[float, float]:
    """Which share of the filters has a fixed scale; and of the filters and the norm layers' channels, counted apart."""
    fixed = total = rows = all_rows = 0
    for bank in find_filters(module, Plugins().rules):
        layers: dict[str, Tensor] = {}
        for slot in bank.slots:
            known = groups.producers.get(slot.parameter)
            shape = dict(module.named_parameters())[slot.parameter].shape
            scaled = torch.zeros(1, *shape) if known is None else (known < groups.count).expand(shape)[None].float()
            found = (slot.gather(scaled)[0] > 0).any(1)
            layer = slot.parameter.rpartition(".")[0]
            layers[layer] = layers.get(layer, torch.zeros(bank.filters, dtype=torch.bool)) | found
        fixed += int(torch.stack(list(layers.values())).any(0).sum())
        total += bank.filters
        rows += sum(int(one.sum()) for one in layers.values())
        all_rows += sum(len(one) for one in layers.values())
    return fixed / total, rows / all_rows


def names_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def symmetries_of(module: nn.Module, *inputs: Tensor) -> tuple[ChannelGroups, list[Block]]:
    """The channel groups and the certified blocks of a module."""
    symmetries = Symmetries.read(module, inputs, {}, names_of(module))
    return symmetries.groups, symmetries.blocks(lambda: (module, inputs, {}))


def shuffled(blocks: list[Block], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for block in blocks:
        weights = block.permute(weights, torch.stack([torch.randperm(block.size) for _ in next(iter(weights.values()))]))
    return weights


def examine(module: nn.Module, *inputs: Tensor) -> Report:
    """Transform random weights by a random symmetry, of scale and of order, and fix the gauge of both."""
    module = prepared(module)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    groups, blocks = symmetries_of(module, *inputs)
    weights = random_weights(module)
    scaled = groups.transform(weights, (torch.randn(1, groups.count).double() * 0.7).exp())
    other = shuffled(blocks, scaled)
    before = run(module, weights, inputs)
    transformed, gauged, invariant = 0.0, 0.0, 0.0
    scale = ScaleGauge(groups, own_scales(dict(module.named_parameters())))
    order = ComposedGauge(scale, PermutationGauge(blocks))
    for gauge, same in ((scale, scaled), (order, other)):
        fixed, also_fixed = gauge(weights), gauge(same)
        transformed = max(transformed, relative(run(module, same, inputs), before))
        gauged = max(gauged, relative(run(module, fixed, inputs), before))
        invariant = max(invariant, *(relative(also_fixed[name], fixed[name]) for name in fixed))
    return Report(groups, blocks, transformed, gauged, invariant, *shares(module, groups))


@dataclass
class Change:
    """What the default gauge changes where layers keep their eps.

    Args:
        outputs: Relative change of the outputs, in training mode.
        amplification: How many times stronger than weights outputs change where weights do so by a little.
    """

    outputs: float
    amplification: float

    def __str__(self) -> str:
        return f"{self.outputs:.1e} amplification {self.amplification:.0e}"


def change_by_eps(module: nn.Module, *inputs: Tensor) -> Change:
    """Fix the gauge of a network as a Hypernet starts with; layers keep their eps."""
    module = prepared(module, eps=None)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    hypernet = Hypernet(
        module, tuple(x[:2] for x in inputs), generator=replace(GeneratorConfig.compact(), start="mean_weights")
    )
    with torch.no_grad():
        weights = hypernet.sample(1).weights
        fixed = hypernet.symmetries.gauge(weights)
    near = {name: value * (1 + 1e-8 * torch.randn_like(value)) for name, value in weights.items()}
    before = run(module, weights, inputs)
    return Change(relative(run(module, fixed, inputs), before), 1e8 * relative(run(module, near, inputs), before))


def holds(report: Report, tolerance: float = 1e-9) -> bool:
    return max(report.transformed, report.gauged, report.invariant) < tolerance
