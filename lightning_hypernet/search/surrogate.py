"""Search in z by a fitted surrogate, where the wanted property has no gradient."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_hypernet.generator.latents import Latents
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.latent_space import LatentSpace, PopulationValue, check_values
from lightning_hypernet.search.latents import LatentSearch, check_functions, rescored_networks
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.values import choice, real, whole

Acquisition = Literal["expected_improvement", "upper_confidence_bound"]


def search_surrogate(
    hypernet: Hypernet,
    objective: PopulationValue,
    evaluations: int = 200,
    starts: int = 50,
    batch: int = 10,
    acquisition: Acquisition = "expected_improvement",
    exploration: float = 2.0,
    candidates: int = 1000,
    reach: float = 0.3,
    keep: int = 16,
    rescore: PopulationValue | None = None,
    component: int | None = None,
    context: Tensor | None = None,
    seed: int = 0,
) -> LatentSearch:
    r"""Look for a high objective over z by a Gaussian process, where the objective has no gradient.

    The process, scikit-learn's with a Matérn kernel, is fitted to all pairs of z and value so far. Of many candidates, half of
    them drawn from the prior and half near the best so far, those are evaluated next that promise most:

    .. math:: \mathrm{EI}(z) = \mathbb{E} \max(f(z) - f^*, 0) \quad \text{or} \quad \mathrm{UCB}(z) = \mu(z) + \kappa \sigma(z)

    Within a batch each choice takes the process's own mean for the value of those before it. Latents of few numbers suit it: in
    a space of dozens a process learns little from hundreds of values.

    References:
        | Automatic Chemical Design Using a Data-Driven Continuous Representation of Molecules (Gómez-Bombarelli et al., 2018)
        | https://doi.org/10.1021/acscentsci.7b00572
        | Kriging is well-suited to parallelize optimization (Ginsbourger, Le Riche and Carraro, 2010)

    Args:
        hypernet: The Hypernet.
        objective: High = wanted: of a population one number for every network, ``(S,)``.
        evaluations: How many networks it is computed for, all told.
        starts: How many of them are draws of the prior, to begin with.
        batch: How many are evaluated between two fits.
        acquisition: ``"expected_improvement"`` or ``"upper_confidence_bound"``.
        exploration: :math:`\kappa` of the upper confidence bound.
        candidates: How many candidates there are for each batch.
        reach: Standard deviation of a candidate around one of the best; every second lies a tenth as far.
        keep: How many networks are returned.
        rescore: As of `search`.
        component: Of all; None: all components evenly, and a process of all.
        context: As of `search`.
        seed: Of all draws.

    Returns:
        The best networks evaluated, the best first.

    Raises:
        TypeError: If something is not what it must be.
        ValueError: If a number is out of range, scikit-learn is missing, or the objective gives no number for every network.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("the Gaussian process is scikit-learn's: pip install 'lightning_hypernet[examples]'")
    space = LatentSpace(hypernet)
    evaluations, batch, candidates, keep = (
        whole(name, value)
        for name, value in (("evaluations", evaluations), ("batch", batch), ("candidates", candidates), ("keep", keep))
    )
    starts = min(whole("starts", starts, 2), evaluations)
    exploration, reach = real("exploration", exploration, 0), real("reach", reach, 0, above=True)
    choice("acquisition", acquisition, get_args(Acquisition))
    check_functions(objective, rescore)
    source = torch.Generator().manual_seed(whole("seed", seed, None))
    latents = space.draw(starts, seed, component, context)
    with evaluating(hypernet), torch.no_grad():
        values = check_values("objective", objective(hypernet.decode(latents)), starts).detach().double().cpu()
        draws = 0
        while len(latents) < evaluations:
            draws += 1
            count = min(batch, evaluations - len(latents))
            new = space.draw(max(candidates // 2, 1), seed + draws, component, context)
            pool = _joined(new, _near(space, latents[values.argsort(descending=True)[:5]], len(new), reach, source))
            picked = pool[_promising(latents, values, pool, min(count, len(pool)), acquisition, exploration, seed)]
            found = check_values("objective", objective(hypernet.decode(picked)), len(picked)).detach().double().cpu()
            latents, values = _joined(latents, picked), torch.cat([values, found])
        order = values.argsort(descending=True)[:keep]
        rescored, population = rescored_networks(hypernet, rescore, latents[order.to(latents.z.device)])
    return LatentSearch(population, values[order], values[:starts], values, evaluations, rescored)


def _near(space: LatentSpace, best: Latents, count: int, reach: float, source: torch.Generator) -> Latents:
    """Latents around some others, every second a tenth as far."""
    like = best[torch.randint(len(best), (count,), generator=source).to(best.z.device)]
    u = space.free(like)
    scale = torch.where(torch.arange(count) % 2 == 0, reach, reach / 10)[:, None]
    return space.latents(u + (scale * torch.randn(u.shape, generator=source)).to(u), like)


def _joined(one: Latents, other: Latents) -> Latents:
    context = None if one.context is None or other.context is None else torch.cat([one.context, other.context])
    return Latents(torch.cat([one.z, other.z]), torch.cat([one.component, other.component]), context)


def _promising(
    latents: Latents, values: Tensor, pool: Latents, count: int, acquisition: Acquisition, exploration: float, seed: int
) -> Tensor:
    """The places in a pool of the most promising latents, one after the other."""
    x, candidates = (one.z.detach().double().cpu() for one in (latents, pool))
    y, free = values, torch.ones(len(candidates), dtype=torch.bool)
    fitted = _process(None, seed)(x, y)
    again, chosen = _process(fitted.kernel_, seed), []
    for _ in range(count):
        mean, deviation = (torch.from_numpy(one) for one in fitted.predict(candidates.numpy(), return_std=True))
        if acquisition == "upper_confidence_bound":
            promise = mean + exploration * deviation
        else:
            promise = _improvement(mean, deviation, y.max())
        index = int(promise.where(free, torch.tensor(-math.inf).double()).argmax())
        chosen.append(index)
        free[index] = False
        if len(chosen) < count:
            x, y = torch.cat([x, candidates[index : index + 1]]), torch.cat([y, mean[index : index + 1]])
            fitted = again(x, y)
    return torch.tensor(chosen, device=pool.z.device)


def _improvement(mean: Tensor, deviation: Tensor, best: Tensor) -> Tensor:
    """The expected improvement of normal values over the best."""
    deviation = deviation.clamp(min=1e-12)
    gain = (mean - best) / deviation
    normal = Normal(mean.new_zeros(()), mean.new_ones(()))
    expected: Tensor = deviation * (gain * normal.cdf(gain) + normal.log_prob(gain).exp())
    return expected


def _process(kernel: Any, seed: int) -> Callable[[Tensor, Tensor], Any]:
    """Fits a Gaussian process to pairs of z and value: its kernel too, or with a kernel that is known."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    first = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(2.0, (1e-2, 1e3), nu=2.5) + WhiteKernel(1e-2, (1e-8, 10.0))
    optimizer = "fmin_l_bfgs_b" if kernel is None else None

    def fit(x: Tensor, y: Tensor) -> Any:
        process = GaussianProcessRegressor(
            kernel=kernel or first, optimizer=optimizer, normalize_y=True, random_state=seed % 2**32
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return process.fit(x.numpy(), y.numpy())

    return fit
