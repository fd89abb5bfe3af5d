"""Laplace: a Gaussian around a trained network by the curvature there, and networks that are linear in their weights.

It takes laplace-torch, which is no part of the extras, since it asks for many packages.
"""

import importlib.util

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.data import DataLoader, TensorDataset

MISSING = "Laplace is left out, since laplace-torch is not installed: pip install laplace-torch"


def installed() -> bool:
    """Whether laplace-torch is there."""
    return importlib.util.find_spec("laplace") is not None


class Linearised:
    r"""Members of a Laplace approximation: a Kronecker product in each layer, its prior by the marginal likelihood.

    .. math:: f_m(x) = f(x, \bar w) + J(x) (w_m - \bar w), \qquad w_m \sim \mathcal N\bigl(\bar w, (N F + \tau I)^{-1}\bigr)

    Args:
        module: A trained classifier.
        images, labels: What it was trained on.
        members: How many are drawn.
        temperature: What the covariance is multiplied by.

    Raises:
        ModuleNotFoundError: If laplace-torch is not installed.

    References:
        | Laplace Redux: Effortless Bayesian Deep Learning (Daxberger et al., 2021)
        | https://arxiv.org/abs/2106.14806
        | Improving predictions of Bayesian neural nets via local linearization (Immer, Korzepa and Bauer, 2021)
        | https://arxiv.org/abs/2008.08400
    """

    def __init__(self, module: nn.Module, images: Tensor, labels: Tensor, members: int, temperature: float = 1.0) -> None:
        if not installed():
            raise ModuleNotFoundError(MISSING)
        from laplace import Laplace

        self.module = module.eval()
        self.mean = {name: one.detach().clone() for name, one in module.named_parameters()}
        posterior = Laplace(
            module, "classification", subset_of_weights="all", hessian_structure="kron", temperature=temperature
        )
        posterior.fit(DataLoader(TensorDataset(images, labels), 100))
        posterior.optimize_prior_precision(method="marglik")
        draws = posterior.sample(members).detach() - posterior.mean.detach()
        sizes = [one.numel() for one in self.mean.values()]
        self.moves = [
            {name: part.view_as(one) for (name, one), part in zip(self.mean.items(), draw.split(sizes), strict=True)}
            for draw in draws
        ]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(members, batch, classes)``."""

        def run(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(self.module, weights, (images,))

        return torch.stack([sum(jvp(run, (self.mean,), (move,))) for move in self.moves])
