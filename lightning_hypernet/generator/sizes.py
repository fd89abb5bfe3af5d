"""Sizes: how large the built-in generator is and may be, and what else follows from what it is for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from lightning_hypernet.generator.config import GeneratorConfig
from lightning_hypernet.target.filters import FilterBanks

_LADDER = (
    (16, (32, 16)),
    (16, (16, 16)),
    (8, (16, 16)),
    (8, (12, 12)),
    (8, (8, 8)),
    (8, (8,)),
    (4, (4,)),
    (2, (2,)),
    (1, (1,)),
)
"""Numbers in a code and widths of hidden layers, from the largest down."""
_ADAPTER_RANK = 8
_ANSWERING_PACE = 4.0


def sides(numbers: int) -> tuple[int, int]:
    """Rows and columns of the nearly square matrix that some numbers fill."""
    rows = math.isqrt(numbers - 1) + 1
    return rows, -(-numbers // rows)


def settled(
    config: GeneratorConfig, banks: FilterBanks, latent_dim: int, components: int, answers: bool = False
) -> GeneratorConfig:
    """A configuration that leaves nothing open: its sizes are the largest that the target allows, pace and norm what it is for.

    Beside the mean weights of the components a generator holds at most a quarter of the target's weights for each of them and
    10,000 numbers; without mean weights a quarter and 5,000 in all; as an adapter twice the numbers of adapters of rank 8 on
    every linear and convolution layer.

    Args:
        config: The configuration.
        banks: The filter banks of the target.
        latent_dim: Numbers in z.
        components: Number of components.
        answers: Whether networks answer to conditions, or to an encoder.
    """
    if config.pace is None:
        config = replace(config, pace=_ANSWERING_PACE if answers else 1.0)
    if config.norm is None:
        config = replace(config, norm="none" if config.relative else "batch")
    layers = [bank for bank in banks if bank.layer] or list(banks)
    allowed = {
        "mean_weights": components * banks.weights // 4 + 10_000,
        "mean_code": banks.weights // 4 + 5_000,
        "adapter": 2 * _ADAPTER_RANK * sum(bank.filters + bank.filter_size for bank in layers),
    }
    most = allowed.get(config.start, allowed["mean_weights"])
    for code_size, hidden in _LADDER:
        found = replace(
            config,
            code_size=code_size if config.code_size is None else config.code_size,
            hidden=hidden if config.hidden is None else config.hidden,
        )
        if None not in (config.code_size, config.hidden) or numbers(found, banks, latent_dim, components) <= most:
            break
    return found


def numbers(config: GeneratorConfig, banks: FilterBanks, latent_dim: int, components: int) -> int:
    """How many numbers a generator of the built-in kinds trains beside mean weights; an extractor of a plug-in counts none.

    Args:
        config: The configuration, sizes and all.
        banks: The filter banks of the target.
        latent_dim: Numbers in z.
        components: Number of components.
    """
    named = config.extractor if isinstance(config.extractor, str) else config.extractor.get("name")
    filters, code_size = banks.filters, config.codes
    total = 0 if config.start == "paper" else components * filters * code_size
    last = config.extractor_hidden[-1] if config.extractor_hidden else latent_dim
    if named in ("mlp", "matrix"):
        total += _chain(config, [latent_dim, *config.extractor_hidden])
    if named == "mlp":
        total += last * filters * code_size + config.bias * filters * code_size
    if named == "matrix":
        rows, columns = sides(last)
        total += rows * filters + columns * code_size
    trunk = [code_size, *config.trunk]
    total += _chain(config, trunk)
    for index, bank in enumerate(banks):
        size = bank.filter_size
        widths = [trunk[-1], *config.widths(index, len(banks))]
        total += _chain(config, widths) + widths[-1] * size
        if not config.anchors(bank.filters):
            total += config.bias * size
        elif config.start == "mean_code":
            total += components * bank.filters * size
    return total


def _chain(config: GeneratorConfig, widths: Sequence[int]) -> int:
    """Numbers of hidden layers with their norms."""
    each = config.bias + 2 * (config.norm != "none")
    return sum(one * other + each * other for one, other in itertools.pairwise(widths))
