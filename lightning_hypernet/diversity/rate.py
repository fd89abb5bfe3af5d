"""Rates: what the codes of data sets tell of them, as a loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_hypernet.diversity.base import DiversityLoss
from lightning_hypernet.population import Population
from lightning_hypernet.values import real, whole


class Rate(DiversityLoss):
    r"""The rates of the encoder, each level's times its beta, for each example of a task, in nats.

    .. math:: \frac{1}{n} \sum_l \beta_l \, KL(q(z_l | z_{>l}, D) \| p(z_l | z_{>l}))

    Where `training_step` returns the mean negative log-likelihood of the n examples of a task, the sum of both is minus the
    evidence lower bound over n.

    References:
        | Trading Information between Latents in Hierarchical Variational Autoencoders (Xiao and Bamler, 2023)
        | https://arxiv.org/abs/2302.04855

    Args:
        beta: Of all levels, or for each by its name.
        examples: n; None: as many as the target was called with for a task, if every call had as many.

    Raises:
        ValueError: If a number is out of range.
    """

    default_weight = 1.0

    def __init__(self, beta: float | Mapping[str, float] = 1.0, examples: int | None = None) -> None:
        super().__init__()
        given = beta if isinstance(beta, Mapping) else {"": beta}
        self.betas = {str(name): real(f"beta of {name or 'the rate'}", value, 0) for name, value in given.items()}
        self.examples = None if examples is None else whole("examples", examples)

    def forward(self, population: Population) -> Tensor:
        """Map a population to its rate for an example, in nats; `parts` holds the rate of every level of a task.

        Raises:
            ValueError: If no encoder made it, or a level has no beta.
        """
        if population.encoded is None:
            raise ValueError("no encoder made these networks: pass encoder= to the Hypernet or the callback")
        rates = population.encoded.rates()
        betas = dict.fromkeys(rates, self.betas[""]) if set(self.betas) == {""} else self.betas
        if set(betas) != set(rates):
            raise ValueError(f"beta names {', '.join(betas)}, and the encoder's levels are {', '.join(rates)}")
        sizes = [self.examples or population.sizes.get(index) for index in range(len(population))]
        if not all(sizes):
            raise ValueError(
                "how many examples a task has is not known, or the target was called with several numbers of them: give it as "
                "{'rate': {'examples': n}}"
            )
        counts = next(iter(rates.values())).new_tensor(sizes)
        self.parts = {name: value.mean().detach() for name, value in rates.items()}
        total: Tensor = sum((betas[name] * value / counts).mean() for name, value in rates.items())  # type: ignore[assignment]
        return total
