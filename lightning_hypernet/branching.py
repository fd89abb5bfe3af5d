"""Branching: one network trains alone for a while, then all components start from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_hypernet.generator import GeneratorConfig
from lightning_hypernet.generator.generator import Generator
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.placing import averages_of
from lightning_hypernet.sharding import shards
from lightning_hypernet.values import real

_DEVIATION = 0.1
_STARTS = ("mean_weights", "pretrained")


class Branching:
    """Trains the mean weights of the first component alone for a share of the steps, then lets all components start there.

    Until then a step draws one network, which sees the whole batch: what the plain network would be, at its cost. Then every
    component starts from it, with the optimizer's state of it, and deviations from it a tenth as large as a fresh
    generator's; networks of one population see a part of a batch each, as they do without a trunk.

    References:
        | Economical ensembles with hypernetworks, now Neural networks with late-phase weights (von Oswald et al., 2021)
        | https://arxiv.org/abs/2007.12927

    Args:
        share: The share of the steps, from 0, which is no trunk, to 1.
        config: What the generator is made of.
        options: Those of the Hypernet.
        others: Arguments of the callback that can't be beside it, and whether they are given.

    Raises:
        ValueError: If no network can train alone.
    """

    def __init__(self, share: Any, config: GeneratorConfig, options: Mapping[str, Any], **others: bool) -> None:
        self.share = real("branch", share, least=0, most=1)
        self._step: int | None = None
        if not self.share:
            return
        distribution = options.get("distribution", "generator")
        name = distribution if isinstance(distribution, str) else distribution.get("name")
        wrong = [f"{name}=" for name, given in {**others, "encoder": options.get("encoder") is not None}.items() if given]
        wrong += [f"distribution={name!r}"] if name != "generator" else []
        wrong += [f"a generator with start={config.start!r}"] if config.start not in _STARTS else []
        if wrong:
            raise ValueError(
                f"branch={self.share} trains mean weights alone at first, which {' and '.join(wrong)} can't have: leave it out"
            )

    def plant(self, hypernet: Hypernet, target: nn.Module) -> Hypernet:
        """Let a new Hypernet be its target alone."""
        if self.share:
            values = {name: target.get_parameter(name).detach()[None] for name in hypernet.banks.shapes}
            hypernet.generator.grow_trunk(hypernet.banks.flatten(values))
        return hypernet

    def take(self, hypernet: Hypernet, known: Hypernet | None) -> None:
        """See that a Hypernet which is there already is where in training it would be.

        Raises:
            ValueError: If another one, that is `known` not to be this callback's, is not.
        """
        if hypernet is not known and self.share and not hypernet.generator.trunk:
            raise ValueError(
                f"branch={self.share} begins with a plain target, and a Hypernet is there whose networks differ: leave it out"
            )
        if hypernet is not known and hypernet.generator.trunk and not self.share:
            raise ValueError("the Hypernet that is there is one network, whose components have not branched yet: set branch")

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, hypernet: Hypernet) -> None:
        """Find the step at which components branch.

        Raises:
            ValueError: If training has no end, optimizes by hand, or its strategy can't leave out unused parameters.
        """
        self._step = None
        if not hypernet.generator.trunk:
            return
        if not pl_module.automatic_optimization:
            raise ValueError(f"branch={self.share} counts the trainer's own steps: leave it out under manual optimization")
        steps = trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError(f"branch={self.share} is a share of all steps, and there is no end: set max_epochs or max_steps")
        settings = getattr(trainer.strategy, "_ddp_kwargs", {"find_unused_parameters": True})
        if shards(trainer) or not settings.get("find_unused_parameters") or settings.get("static_graph"):
            raise ValueError(
                f"branch={self.share} leaves parameters unused at first: set strategy='ddp_find_unused_parameters_true', or "
                "leave out branch"
            )
        self._step = math.ceil(self.share * steps)

    def branch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, hypernet: Hypernet) -> None:
        """Let the components branch, if it is time."""
        if self._step is None or trainer.global_step < self._step:
            return
        followers = [one for one in pl_module.modules() if isinstance(one, Hypernet) and one.leader is hypernet]
        for one in (hypernet, *followers, *averages_of(trainer, hypernet)):
            branch(one)
        copy_state(trainer.optimizers, hypernet)
        self._step = None

    def end(self, hypernet: Hypernet) -> None:
        """Tell if training ended too early."""
        if self._step is not None and hypernet.generator.trunk:
            warnings.warn(
                f"training ended before components branched, which branch={self.share} and the trainer's max_epochs or "
                f"max_steps put at step {self._step:,}: all networks are one",
                stacklevel=2,
            )


def branch(hypernet: Hypernet) -> None:
    """Let every component of a Hypernet start from the trunk, if there is one."""
    generator = hypernet.generator
    if generator.trunk:
        assert isinstance(generator, Generator)
        generator.branch(hypernet.members.latents, _DEVIATION)
        hypernet.members.forget()


@torch.no_grad()
def copy_state(optimizers: Iterable[torch.optim.Optimizer], hypernet: Hypernet) -> None:
    """Let the mean weights of every component have the optimizer's state of the first."""
    means: list[Tensor] = [generate.means for generate in hypernet.generator.of_banks()]  # type: ignore[misc]
    for optimizer in optimizers:
        for parameter in means:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape[:1] == (hypernet.components,):
                    value.copy_(value[:1].expand_as(value).clone())
