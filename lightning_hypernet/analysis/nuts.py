"""The No-U-Turn Sampler, which is pyro's."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def check_pyro() -> None:
    """See that pyro is installed.

    Raises:
        ValueError: If it is not.
    """
    if importlib.util.find_spec("pyro") is None:
        raise ValueError("Hamiltonian Monte Carlo is pyro's: pip install 'lightning_hypernet[mcmc]'")


def draw_by_nuts(
    log_joint: Callable[[Tensor], Tensor], start: Tensor, draws: int, warmup: int, depth: int, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """Draw from a density by Hamiltonian Monte Carlo, several chains one after the other.

    References:
        | The No-U-Turn Sampler (Hoffman and Gelman, 2014), https://arxiv.org/abs/1111.4246
        | Rank-normalization, folding, and localization (Vehtari et al., 2021), https://arxiv.org/abs/1903.08008, on R-hat

    Args:
        log_joint: The log density up to a constant of ``(numbers,)``, a scalar.
        start: ``(chains, numbers)``.
        draws: Of every chain.
        warmup: Steps before, of every chain.
        depth: Of the tree, at most: 2 to this number of gradients for a draw.
        seed: Of all chains.

    Returns:
        ``(chains * draws, numbers)``, and the largest R-hat, the least effective size and the number of divergences.

    Raises:
        ValueError: If pyro is not installed.
    """
    check_pyro()
    from pyro.infer import MCMC, NUTS
    from pyro.ops.stats import effective_sample_size, split_gelman_rubin

    def potential(point: dict[str, Tensor]) -> Tensor:
        u = point["u"]
        return -log_joint(u) if bool(u.isfinite().all()) else u.sum() * math.nan

    chains, divergences = [], 0
    with torch.random.fork_rng(devices=[start.device] if start.device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        for one in start:
            kernel = NUTS(potential_fn=potential, max_tree_depth=depth)
            chain: Any = MCMC(kernel, draws, warmup, initial_params={"u": one.detach().clone()}, disable_progbar=True)
            chain.run()
            chains.append(chain.get_samples()["u"].detach())
            divergences += sum(len(found) for found in chain.diagnostics()["divergences"].values()) if draws > 3 else 0
    stacked = torch.stack(chains)
    diagnostics = {"divergences": float(divergences)}
    if draws > 3:
        diagnostics["r_hat"] = float(split_gelman_rubin(stacked).max())
        diagnostics["effective_size"] = float(effective_sample_size(stacked).min())
    return stacked.flatten(0, 1), diagnostics
