"""Mutual information gap: whether each factor is told by one latent number alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.analysis.neighbours import entropy_of, shared_with_classes
from lightning_hypernet.values import instance, whole


@dataclass(frozen=True)
class InformationGap:
    """Information that latent numbers share with factors.

    Args:
        matrix: ``(latents, factors)``, in nats.
        entropies: ``(factors,)``, in nats, the most that a column can hold.
        factors: The names of the factors.
    """

    matrix: Tensor
    entropies: Tensor
    factors: tuple[str, ...]

    @property
    def shares(self) -> Tensor:
        """``(latents, factors)``, the information over each factor's entropy: at most 1, but for errors."""
        return self.matrix / self.entropies

    @property
    def gaps(self) -> Tensor:
        """``(factors,)``, the share of the latent that tells most less that of the next: from 0 to 1."""
        best = self.shares.topk(2, dim=0).values
        return best[0] - best[1]

    @property
    def best(self) -> Tensor:
        """``(factors,)``, which latent tells most of each factor."""
        return self.matrix.argmax(0)

    @property
    def mean(self) -> float:
        """The mean of the gaps, from 0 to 1."""
        return float(self.gaps.mean())

    def __str__(self) -> str:
        lines = [f"mutual information gap {self.mean:.3f}, at most 1"]
        for index, name in enumerate(self.factors):
            best = int(self.best[index])
            told, most = float(self.matrix[best, index]), float(self.entropies[index])
            lines.append(f"{name}: latent {best} tells {told:.3f} nats, at most {most:.3f}; gap {float(self.gaps[index]):.3f}")
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the shares, with every factor's gap; returns figure and axes of matplotlib."""
        from matplotlib import pyplot

        size = (1.6 + 0.9 * len(self.factors), 1.6 + 0.3 * len(self.matrix))
        figure, axes = (ax.figure, ax) if ax is not None else pyplot.subplots(figsize=size, layout="constrained")
        image = axes.imshow(self.shares.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
        names = [f"{name}\ngap {gap:.2f}" for name, gap in zip(self.factors, self.gaps.tolist(), strict=True)]
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel="latent", title=f"mean gap {self.mean:.2f} of at most 1")
        figure.colorbar(image, ax=axes, label="share of the factor's entropy")
        return figure, axes


def mutual_information_gap(
    latents: Tensor, factors: Mapping[str, Tensor], bins: int = 10, neighbours: int = 3, seed: int = 0
) -> InformationGap:
    r"""How much of each factor the latent that tells most of it tells more than the next.

    .. math:: \frac1K \sum_k \frac{I(z_{(1)}; v_k) - I(z_{(2)}; v_k)}{H(v_k)}

    Factors are what networks differ in: their condition or task, or what is measured of them, such as the norm of a layer or
    the accuracy on a class. Factors of integers are classes. Real numbers are cut into bins of equal shares, since their
    information may have no maximum. The entropy is that of the factor as it is found, not the logarithm of the number of its
    values. Information of continuous latents is estimated by nearest neighbours, with an error of some hundredths of a nat
    for 1,000 networks.

    Args:
        latents: ``(S, d)``, real numbers, or integers for categories.
        factors: For every name its values, ``(S,)``.
        bins: Bins of factors of real numbers.
        neighbours: The neighbour that estimates look at.
        seed: Of the estimates.

    Returns:
        The information, the entropies and the gaps.

    Raises:
        TypeError: If these are no tensors.
        ValueError: If there are fewer than two latents, lengths do not fit, a factor has one value only, numbers are NaN or
            infinite, or scikit-learn is not installed.

    References:
        | Isolating Sources of Disentanglement in Variational Autoencoders (Chen, Li, Grosse and Duvenaud, 2018)
        | https://arxiv.org/abs/1802.04942, section 4
        | Mutual Information between Discrete and Continuous Data Sets (Ross, 2014)
        | https://doi.org/10.1371/journal.pone.0087357
    """
    instance("latents", latents, Tensor, "a tensor (S, d)")
    instance("factors", factors, Mapping, "a mapping of names to values (S,)")
    bins, neighbours, seed = whole("bins", bins, 2), whole("neighbours", neighbours), whole("seed", seed, None)
    if latents.ndim != 2 or latents.shape[1] < 2 or not bool(latents.isfinite().all()):
        raise ValueError(f"latents must be finite, (S, d) with d of two or more, not {tuple(latents.shape)}")
    if len(latents) <= neighbours or not factors:
        raise ValueError(f"there must be more than neighbours={neighbours} networks and a factor, not {len(latents)}")
    known = latents.detach().cpu()
    known = known.double() if known.is_floating_point() else known.long()
    classes = {str(name): _classes(str(name), values, len(latents), bins) for name, values in factors.items()}
    entropies = torch.tensor([entropy_of(values) for values in classes.values()], dtype=torch.float64)
    columns = [shared_with_classes(known, values, neighbours, seed) for values in classes.values()]
    return InformationGap(torch.stack(columns, 1), entropies, tuple(classes))


def _classes(name: str, values: Tensor, count: int, bins: int) -> Tensor:
    """A factor as classes, ``(S,)``, of two values or more."""
    instance(f"the factor {name}", values, Tensor, "a tensor (S,)")
    values = values.detach().cpu()
    if values.shape != (count,) or not bool(values.isfinite().all()):
        raise ValueError(f"the factor {name} must be finite, ({count},) like the latents, not {tuple(values.shape)}")
    if values.is_floating_point():
        cuts = values.double().quantile(torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]).unique()
        values = torch.bucketize(values.double().contiguous(), cuts, right=True)
    values = values.long()
    if len(values.unique()) < 2:
        raise ValueError(f"the factor {name} has one value only, so that there is nothing to tell: leave it out")
    return values
