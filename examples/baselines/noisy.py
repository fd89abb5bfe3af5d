"""NaturalGradient: what noisy Adam and noisy K-FAC have in common."""

from abc import abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Losses = Callable[[], Tensor]


class NaturalGradient(torch.optim.Optimizer):
    r"""An optimizer whose curvature is the precision of a Gaussian, from which the weights of every step are drawn.

    .. math::
        w \sim \mathcal N\Bigl(\mu, \frac{\lambda}{N} (F + \gamma I)^{-1}\Bigr), \quad \gamma = \frac{\lambda}{N \eta}, \quad
        \mu \leftarrow \mu - \alpha (F + (\gamma + \delta) I)^{-1} m

    with m the running mean of the gradient of the mean loss at w plus :math:`\gamma w`, and F what the kind of optimizer takes
    for the Fisher matrix of one example. Between steps the parameters hold :math:`\mu`.

    Args:
        params: The parameters.
        lr: :math:`\alpha`.
        examples: N, the size of the training set.
        kl: :math:`\lambda`, the weight of the divergence from the prior.
        variance: :math:`\eta`, the prior's, whose mean is 0.
        damping: :math:`\delta`, which slows steps and leaves the posterior alone.
        betas: Of the running means of gradients and of curvatures.

    References:
        | Noisy Natural Gradient as Variational Inference (Zhang, Sun, Duvenaud and Grosse, 2018)
        | https://arxiv.org/abs/1712.02390
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, examples: int, kl: float = 1.0, variance: float = 1.0,
        damping: float = 0.0, betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr})
        (group,) = self.param_groups
        self.weights: list[Tensor] = group["params"]
        self.share, self.floor, self.damping, self.betas = kl / examples, kl / (examples * variance), damping, betas
        self.taken = 0

    def debiased(self, running: Tensor, beta: float) -> Tensor:
        """A running mean that started at 0; before the first step 0."""
        return running / (1 - beta ** max(1, self.taken))

    @abstractmethod
    def draw(self, scale: float = 1.0) -> None:
        """Put a sample into the parameters, its distance from the mean scaled; with 0 the mean."""

    @abstractmethod
    def look(self, losses: Losses) -> None:
        """Add a batch to the curvature."""

    @abstractmethod
    def move(self, gradients: list[Tensor], lr: float) -> None:
        """Add the parameters' gradients to their running mean, and move the mean."""

    def step(self, losses: Losses, sampled: Losses | None = None) -> Tensor:  # type: ignore[override]
        """One step, whose mean loss is returned.

        Args:
            losses: Gives the negative log-likelihood of every example of a batch, ``(batch,)``, in nats.
            sampled: The same with labels that are drawn from what the network predicts, for the true Fisher matrix; None: the
                squares of the gradients themselves are taken for it.
        """
        self.draw(min(1, self.taken))  # the first step is at the mean, since the curvature is not known yet
        loss = losses().mean()
        gradients = torch.autograd.grad(loss, self.weights, materialize_grads=True)
        self.look(losses if sampled is None else sampled)
        self.taken += 1
        self.move(
            [slope + self.floor * one.detach() for slope, one in zip(gradients, self.weights, strict=True)],
            self.param_groups[0]["lr"],
        )
        self.draw(0)
        return loss.detach()
