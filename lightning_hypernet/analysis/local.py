"""Local optimisation: Adam until checks stop gaining, as gaps are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from lightning_hypernet.values import real, whole


@dataclass(frozen=True)
class Local:
    """How tensors are optimised, and when that ends.

    Args:
        lr: Learning rate of Adam.
        every: Steps between two checks.
        patience: So many checks without a gain of the mean end it.
        most: Steps at most.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018)
        | https://arxiv.org/abs/1801.03558
    """

    lr: float = 1e-3
    every: int = 100
    patience: int = 10
    most: int = 20_000

    def __post_init__(self) -> None:
        real("lr", self.lr, 0, above=True)
        for name in ("every", "patience", "most"):
            whole(name, getattr(self, name))

    def minimise(
        self, tensors: Sequence[Tensor], loss: Callable[[int], Tensor], checked: Callable[[], Tensor]
    ) -> tuple[list[Tensor], Tensor, int]:
        """The best values of tensors ``(S, ...)``, row by row, that a check met, the start included.

        Args:
            tensors: Leaves with gradients, whose first axis counts independent problems.
            loss: Of the number of a step a scalar to follow, or a sum over rows.
            checked: What counts, ``(S,)``, of the tensors as they are.

        Returns:
            The values, ``(S,)`` what was checked there, and the number of steps.
        """
        optimizer = Adam(tensors, lr=self.lr)
        with torch.no_grad():
            low = checked().detach()
        best, idle, step = [one.detach().clone() for one in tensors], 0, 0
        while idle < self.patience and step < self.most:
            for _ in range(min(self.every, self.most - step)):
                gradients = torch.autograd.grad(loss(step), tensors)
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    tensor.grad = gradient
                optimizer.step()
                step += 1
            with torch.no_grad():
                now = checked().detach()
            better = now < low
            reached = torch.where(better, now, low)
            idle = 0 if bool(reached.mean() < low.mean()) else idle + 1
            low = reached
            for kept, tensor in zip(best, tensors, strict=True):
                kept[better] = tensor.detach()[better]
        return best, low, step
