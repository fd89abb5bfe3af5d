"""Filter banks: a place for every parameter of a target.

A *filter* is all the numbers that make one output unit: a row of a weight, its bias, and the scale and shift of the norm
layer behind it. The filters of one layer form a *bank*, which is generated as ``(samples, filters, filter_size)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_hypernet.values import guess


@dataclass(frozen=True)
class Slot:
    """A block of rows of one parameter, read as filters.

    The rows ``start : start + shape[0]`` are viewed as ``view``; the axes ``axes`` of that view enumerate the filters, the
    others hold what a filter is made of.

    Args:
        parameter: Name of the parameter, relative to the module that a rule is asked about.
        shape: Shape of the block.
        view: A shape with the same number of elements.
        axes: Which axes of the view enumerate filters. Empty: the block is a part of a single filter.
        start: First row of the block; a block that is a whole parameter starts at 0.
    """

    parameter: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    axes: tuple[int, ...] = (0,)
    start: int = 0

    @property
    def filters(self) -> int:
        """Number of filters."""
        return math.prod([self.view[axis] for axis in self.axes])

    @property
    def size(self) -> int:
        """Numbers in each filter."""
        return math.prod(self.view) // self.filters

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.axes, *(axis for axis in range(len(self.view)) if axis not in self.axes))

    def gather(self, parameter: Tensor) -> Tensor:
        """Read the block out of ``(S, *parameter_shape)`` as ``(S, filters, size)``."""
        block = parameter[:, self.start : self.start + self.shape[0]] if self.shape else parameter
        view = block.reshape(-1, *self.view).permute(0, *(axis + 1 for axis in self._order))
        return view.reshape(-1, self.filters, self.size)

    def scatter(self, filters: Tensor) -> Tensor:
        """Turn ``(S, filters, size)`` into the block ``(S, *shape)``; the inverse of `gather`."""
        order = self._order
        if list(order) != sorted(order):
            inverse = sorted(range(len(order)), key=order.__getitem__)
            filters = filters.reshape(-1, *(self.view[axis] for axis in order)).permute(0, *(axis + 1 for axis in inverse))
        return filters.reshape(-1, *self.shape)


Rule = Callable[[nn.Module], Iterable[Sequence[Slot]]]
"""Reads the own parameters of one module as banks: each bank is a sequence of slots with equal numbers of filters."""


LAYERS = (nn.Linear, _ConvNd)
"""Layers whose output units a norm layer behind them may scale."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Layers whose scale and shift may ride with the filters in front of them."""


@dataclass(frozen=True)
class FilterBank:
    """The filters of one layer and the parameters they fill.

    Args:
        name: Path of the module, or of the bare parameter.
        slots: What a filter is made of, in order; the parameters are named by their path in the target.
        layer: Whether the bank is a linear or convolution layer.
    """

    name: str
    slots: tuple[Slot, ...]
    layer: bool = False

    @property
    def filters(self) -> int:
        """Number of filters."""
        return self.slots[0].filters

    @property
    def filter_size(self) -> int:
        """Numbers in each filter."""
        return sum(slot.size for slot in self.slots)

    @property
    def bare(self) -> bool:
        """Whether the bank is a parameter that no rule reads."""
        return self.name == self.slots[0].parameter

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Read the bank out of weights.

        Args:
            weights: For every parameter its ``(S, *shape)``.

        Returns:
            ``(S, filters, filter_size)``.
        """
        return torch.cat([slot.gather(weights[slot.parameter]) for slot in self.slots], dim=-1)

    def whole(self) -> FilterBank:
        """The same numbers as a bank of one filter."""
        return replace(self, slots=tuple(replace(slot, axes=()) for slot in self.slots))


@dataclass(frozen=True)
class Structure:
    """What the graph of a target shows of its filters.

    Args:
        norms: For every parameter of a norm layer that scales the output units of a layer, the weight of that layer.
        output: The weight of the layer that the output comes from; None: not known.
    """

    norms: Mapping[str, str]
    output: str | None


class FilterBanks:
    """All banks of a target, and what is left as it is.

    Iterating gives the banks, in the order of the target's parameters.

    Args:
        banks: The banks.
        shapes: Shape of every generated parameter.
        aliases: Every generated parameter's names in the target; more than one where parameters are tied.
        ordinary: Names of the parameters that are not generated, with the reason.
    """

    def __init__(
        self,
        banks: Sequence[FilterBank],
        shapes: Mapping[str, tuple[int, ...]],
        aliases: Mapping[str, tuple[str, ...]],
        ordinary: Mapping[str, str],
    ) -> None:
        self.banks = tuple(banks)
        self.shapes = dict(shapes)
        self.aliases = dict(aliases)
        self.ordinary = dict(ordinary)

    def __iter__(self) -> Iterator[FilterBank]:
        return iter(self.banks)

    def __len__(self) -> int:
        return len(self.banks)

    @property
    def filters(self) -> int:
        """Number of filters of all banks."""
        return sum(bank.filters for bank in self)

    @property
    def weights(self) -> int:
        """Number of generated weights."""
        return sum(bank.filters * bank.filter_size for bank in self)

    def flatten(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Read every bank out of ``{name: (S, *shape)}``; a list of ``(S, filters, filter_size)``."""
        return [bank.flatten(weights) for bank in self]

    def assemble(self, parts: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Fill the parameters; the inverse of `flatten`.

        Args:
            parts: For every slot of every bank ``(S, filters, size)``; nothing of a bank that is left out.

        Returns:
            ``{name: (S, *shape)}`` for every parameter that they fill, tied ones once, contiguous, as plain weights are.
        """
        blocks: dict[str, list[tuple[int, Tensor]]] = {}
        for bank, own in zip(self, parts, strict=True):
            for slot, part in zip(bank.slots if own else (), own, strict=True):
                blocks.setdefault(slot.parameter, []).append((slot.start, slot.scatter(part)))
        return {name: _join(blocks[name]) for name in self.shapes if name in blocks}


def _join(parts: list[tuple[int, Tensor]]) -> Tensor:
    blocks = [block for _, block in sorted(parts, key=lambda part: part[0])]
    return blocks[0].contiguous() if len(blocks) == 1 else torch.cat(blocks, dim=1)


def find_filters(
    target: nn.Module,
    rules: Mapping[type[nn.Module], Rule],
    generate: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    merge: Sequence[int] = (-1,),
    merge_limit: int = 1024,
    structure: Structure | None = None,
    frozen: bool = False,
) -> FilterBanks:
    """Give every parameter of a target its place.

    A module is read by the rule of its class, or of the nearest class that it inherits from. A parameter that no rule
    knows is a bank of one filter. The scale and shift of a norm layer ride with the filters of the layer in front of it,
    which the graph shows; without one, the module tree: adjacent in a `torch.nn.Sequential`, or a batch norm defined right
    behind its layer.

    Args:
        target: Any module.
        rules: For every class of module its rule.
        generate: Glob patterns over parameter names: what is generated.
        exclude: Glob patterns: what is not generated after all.
        merge: Which linear and convolution layers, by position, become a bank of one filter, as the paper does with the
            last one; that is the layer the output comes from, where the graph shows it.
        merge_limit: Layers with more weights than this are never merged.
        structure: What the graph shows.
        frozen: Whether parameters that need no gradient are generated too.

    Returns:
        The banks; what is frozen, excluded or not a floating-point tensor is listed as ordinary.

    Raises:
        ValueError: If there is nothing to generate, a pattern matches nothing, or a parameter is not initialised.
    """
    names: dict[int, list[str]] = {}
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in target.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        parameters.setdefault(names[id(parameter)][0], parameter)
    aliases = {group[0]: tuple(group) for group in names.values()}
    _check(target, parameters, aliases, (*generate, *exclude))

    reasons = {name: _left_alone(one, aliases[name], generate, exclude, frozen) for name, one in parameters.items()}
    ordinary = {name: reason for name, reason in reasons.items() if reason}
    canonical = {name: first for first, group in aliases.items() for name in group if first not in ordinary}
    banks = _read(target, rules, canonical, parameters)
    holders = {slot.parameter: bank.name for bank in banks for slot in bank.slots}
    named = [(canonical.get(norm), canonical.get(layer)) for norm, layer in (structure.norms.items() if structure else ())]
    pairs = [(holders[norm], holders[layer]) for norm, layer in named if norm and layer]
    banks = _attach_norms(banks, pairs if structure else _norms_behind_layers(target))
    if not banks:
        raise ValueError(
            f"no parameter of {type(target).__name__} is generated: "
            + "; ".join(f"{name} ({reason})" for name, reason in ordinary.items())
            + "; widen `generate`, narrow `exclude`, or set requires_grad"
        )
    layers = [index for index, bank in enumerate(banks) if bank.layer]
    output = canonical.get(structure.output) if structure and structure.output else None
    layers.sort(key=lambda index: output is not None and banks[index].slots[0].parameter == output)
    for position in merge if layers or tuple(merge) != (-1,) else ():
        if not -len(layers) <= position < len(layers):
            raise ValueError(f"merge names layer {position}, and {len(layers)} layers of {type(target).__name__} are generated")
        if (bank := banks[layers[position]]).filters * bank.filter_size <= merge_limit:
            banks[layers[position]] = bank.whole()
    shapes = {name: tuple(value.shape) for name, value in parameters.items() if name not in ordinary}
    _validate(banks, shapes)
    return FilterBanks(banks, shapes, {name: aliases[name] for name in shapes}, ordinary)


def _check(
    target: nn.Module, parameters: Mapping[str, nn.Parameter], aliases: Mapping[str, tuple[str, ...]], patterns: Sequence[str]
) -> None:
    if not parameters:
        raise ValueError(f"{type(target).__name__} has no parameters, so there is nothing to generate; wrap another module")
    problems = [
        f"{name} is not initialised; run the module once on an example before it is wrapped"
        for name, parameter in parameters.items()
        if isinstance(parameter, nn.parameter.UninitializedParameter)
    ]
    everything = [name for group in aliases.values() for name in group]
    problems += [
        f"the pattern {pattern!r} matches no parameter{guess(pattern, everything)}; the first names are "
        f"{', '.join(everything[:5])}"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in everything)
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _left_alone(
    parameter: nn.Parameter, names: Sequence[str], generate: Sequence[str], exclude: Sequence[str], frozen: bool
) -> str | None:
    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    if matches(exclude) or not matches(generate):
        return "not chosen by the patterns"
    if not parameter.dtype.is_floating_point:
        return f"dtype {parameter.dtype}"
    if not (parameter.requires_grad or frozen):
        return "frozen"
    return None if parameter.numel() else "empty"


def _read(
    target: nn.Module,
    rules: Mapping[type[nn.Module], Rule],
    canonical: Mapping[str, str],
    parameters: Mapping[str, nn.Parameter],
) -> list[FilterBank]:
    """Ask the rules, in the order of the modules; each canonical parameter is taken by the first who claims it."""
    banks: list[FilterBank] = []
    taken: set[str] = set()
    for path, module in target.named_modules():
        rule = next((rules[cls] for cls in type(module).__mro__ if cls in rules), None)
        found = []
        layer = isinstance(module, LAYERS)
        for slots in rule(module) if rule else ():
            bound = [replace(slot, parameter=_path(path, slot.parameter)) for slot in slots]
            free = [slot for slot in bound if canonical.get(slot.parameter, slot.parameter) not in taken]
            kept = tuple(replace(slot, parameter=canonical[slot.parameter]) for slot in free if slot.parameter in canonical)
            if kept:
                found.append(FilterBank(path or type(module).__name__, kept, layer))
        if len(found) > 1:
            found = [replace(bank, name=f"{bank.name}[{index}]") for index, bank in enumerate(found)]
        claimed = {slot.parameter for bank in found for slot in bank.slots}
        for name, _ in module.named_parameters(recurse=False):
            own = canonical.get(_path(path, name))
            if own is None or own in taken or own in claimed:
                continue
            claimed.add(own)
            shape = tuple(parameters[own].shape)
            if len(found) == 1 and len(shape) > 0 and math.prod(shape) == found[0].filters:
                rider = Slot(own, shape, (found[0].filters,))
                found[0] = replace(found[0], slots=(*found[0].slots, rider))
            else:
                found.append(FilterBank(own, (Slot(own, shape, shape, ()),)))
        banks += found
        taken |= claimed
    return banks


def _validate(banks: Sequence[FilterBank], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Stop rules, which plug-ins may bring, that read a parameter in part, twice or unevenly."""
    problems = []
    rows: dict[str, list[int]] = {name: [] for name in shapes}
    for bank in banks:
        counts = {slot.parameter: slot.filters for slot in bank.slots}
        if len(set(counts.values())) > 1:
            problems.append(f"{bank.name}: the rule gives slots with different numbers of filters, {counts}")
        for slot in bank.slots:
            rows[slot.parameter] += range(slot.start, slot.start + slot.shape[0]) if slot.shape else [0]
            if slot.shape[1:] != shapes[slot.parameter][1:]:
                problems.append(f"{slot.parameter}: the rule reads {slot.shape} of {shapes[slot.parameter]}, not whole rows")
    for name, shape in shapes.items():
        count, read = shape[0] if shape else 1, set(rows[name])
        if sorted(rows[name]) != list(range(count)):
            problems.append(f"{name}: the rule covers {len(read)} of {count} rows, {len(rows[name]) - len(read)} twice")
    if problems:
        raise ValueError("; ".join(problems))


def _attach_norms(banks: list[FilterBank], pairs: Iterable[tuple[str, str]]) -> list[FilterBank]:
    """Let the scale and shift of norm layers ride with the layer in front of them: pairs of the names of their banks."""
    position = {bank.name: index for index, bank in enumerate(banks)}
    attached: set[str] = set()
    for norm, layer in pairs:
        if norm not in position or layer not in position or norm in attached:
            continue
        rider, host = banks[position[norm]], banks[position[layer]]
        if rider.filters == host.filters and host.layer:
            banks[position[layer]] = replace(host, slots=host.slots + rider.slots)
            attached.add(norm)
    return [bank for bank in banks if bank.name not in attached]


def _norms_behind_layers(target: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in target.named_modules():
        layer = None
        for name, child in module.named_children():
            if isinstance(child, NORMS):
                plain = isinstance(module, nn.Sequential) or isinstance(child, _NormBase)
                if layer is not None and plain:
                    yield _path(path, name), layer
                layer = None
            elif isinstance(child, LAYERS):
                layer = _path(path, name)
            elif not isinstance(child, (nn.Identity, nn.modules.dropout._DropoutNd)):
                layer = None


def _path(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
