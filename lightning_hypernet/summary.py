"""Summary: every parameter of a target, in which bank it lies and how its gauge is fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_hypernet.generator import WeightDistribution
from lightning_hypernet.symmetry.scale import ChannelGroups
from lightning_hypernet.target.filters import FilterBank, FilterBanks


def fixed_filters(bank: FilterBank, shapes: Mapping[str, tuple[int, ...]], groups: ChannelGroups) -> Tensor:
    """Which filters of a bank have a scale that the gauge fixes: ``(filters,)``."""
    fixed = torch.zeros(bank.filters, dtype=torch.bool)
    for slot in bank.slots:
        if slot.parameter in groups.producers:
            scaled = (groups.producers[slot.parameter] < groups.count).expand(shapes[slot.parameter])
            fixed |= slot.gather(scaled[None])[0].any(1)
    return fixed


def summarize(banks: FilterBanks, target: nn.Module, generator: WeightDistribution, groups: ChannelGroups | None) -> str:
    """A table for people.

    Args:
        banks: The filter banks.
        target: The target; it tells the shapes of what is not generated.
        generator: The generator.
        groups: The channel groups, if they were read.

    Returns:
        One row a bank with all its parameters, one a parameter that is left as it is, and what pins scales.
    """
    rows = [("bank", "parameters", "filters x size", "generator", "gauge")]
    total = fixed = 0
    counts = [f"{_count(maker):,}" for maker in generator.of_banks()] or ["-"] * len(banks)
    for bank, made_by in zip(banks, counts, strict=True):
        names = [" = ".join(banks.aliases[name]) for name in dict.fromkeys(slot.parameter for slot in bank.slots)]
        gauge = "not read"
        if groups is not None:
            scaled = int(fixed_filters(bank, banks.shapes, groups).sum())
            total, fixed = total + bank.filters, fixed + scaled
            gauge = "-" if not scaled else "scale" if scaled == bank.filters else f"scale of {scaled}"
        size = f"{bank.filters:,} x {bank.filter_size:,}"
        rows.append((f"{bank.name} *" if bank.bare else bank.name, ", ".join(names), size, made_by, gauge))
    for name, reason in banks.ordinary.items():
        shape = "x".join(map(str, target.get_parameter(name).shape)) or "scalar"
        rows.append(("-", name, shape, "-", f"left as it is: {reason}"))
    lines = _align(rows)
    lines.append(
        f"{banks.weights:,} weights in {len(banks)} banks of {banks.filters:,} filters, from a {type(generator).__name__} of "
        f"{_count(generator):,} parameters"
    )
    if any(bank.bare for bank in banks):
        lines.append(
            "* no rule reads these parameters, so that each is one filter; register one with hypernet_register_filters"
        )
    if groups is not None:
        lines.append(f"the scale of {fixed:,} of {total:,} filters is fixed, in {groups.count:,} groups of channels")
        lines += [f"pinned by {operation}: {count:,} channels" for operation, count in groups.pinned.items() if count]
    return "\n".join(lines)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
