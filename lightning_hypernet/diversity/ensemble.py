"""The loss of the joined prediction."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population
from lightning_hypernet.target.reduction import reduce_outputs, refuse_regression
from lightning_hypernet.values import choice, guess, switch, whole


class EnsembleLoss(DiversityLoss):
    r"""The target's loss on the joined prediction of the population, on examples that all networks share.

    With ``relative=True`` the networks' own mean loss is taken off: what remains is minus the gain of the ensemble, the
    ambiguity of Krogh and Vedelsby (1995) for the squared loss. Weighing it by more than 1 rewards disagreement even where it
    costs the ensemble.

    The callback takes the second entry of the batch, or the one named targets or labels, for the targets of the inputs that the
    target is called with first. A training step that shuffles, mixes or selects them sets `hypernet.population.targets` after
    that call.

    Args:
        loss: Name of a function of `torch.nn.functional` that takes outputs and targets, or such a function.
        join: ``"log_mean_prob"``: the outputs are logits, the joined one is the log of the mean probability, for one logit as a
            logit again; refused for regression. ``"mean"``: the mean output.
        relative: Take off the mean loss of the networks.
        dim: The axis of the classes, where it is not axis 1 of two axes or of maps.
    """

    default_weight = 0.3

    def __init__(
        self,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        join: Literal["log_mean_prob", "mean"] = "log_mean_prob",
        relative: bool = False,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(loss, str) and not callable(getattr(F, loss, None)):
            raise ValueError(f"torch.nn.functional has no loss {loss!r}{guess(loss, dir(F))}")
        if isinstance(loss, str) and "target" not in str(inspect.signature(getattr(F, loss))):
            raise ValueError(f"torch.nn.functional.{loss} takes no targets, so {loss!r} is no loss")
        if not (isinstance(loss, str) or callable(loss)):
            raise TypeError(f"loss must be a function of outputs and targets or its name in torch.nn.functional, not {loss!r}")
        choice("join", join, ("log_mean_prob", "mean"))
        self.loss: Callable[[Tensor, Tensor], Tensor] = getattr(F, loss) if isinstance(loss, str) else loss
        self.join, self.relative = join, switch("relative", relative)
        self.dim = None if dim is None else whole("dim", dim, None)

    def forward(self, population: Population) -> Tensor:
        """Map a population with targets to the loss of its joined prediction."""
        outputs, targets = population.outputs, population.output_targets
        refuse_regression(self.join, outputs[0], targets, "join =")
        loss = self.loss(reduce_outputs(outputs, {"name": self.join, "dim": self.dim}), targets)
        if self.relative:
            loss = loss - torch.stack([self.loss(output, targets) for output in outputs.unbind(0)]).mean()
        return loss
