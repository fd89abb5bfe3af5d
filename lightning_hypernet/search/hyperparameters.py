"""HyperparameterSearch: hyperparameters chosen on validation data while the generator learns how networks respond to them."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Adam

from lightning_hypernet.callback import HypernetCallback
from lightning_hypernet.conditions import Conditions
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.search.validation import metrics_kept, transferred, validating, validation_batches, without_dropout
from lightning_hypernet.target.modes import evaluating
from lightning_hypernet.training_step import step_on, unlogged
from lightning_hypernet.trees import BaseCallback
from lightning_hypernet.values import choice, real, shown, whole

Objective = str | Callable[[pl.LightningModule, Any], Tensor]


@dataclass(frozen=True)
class SearchStep:
    """A step of a search.

    Args:
        step: The training step after which it was made.
        loss: The validation loss before it, of networks at the center.
        values: The hyperparameters after it, by name; of one with several values their mean.
    """

    step: int
    loss: float
    values: Mapping[str, float]


class HyperparameterSearch(BaseCallback):
    r"""Moves hyperparameters to where the validation loss is lowest, behind a `HypernetCallback` with conditions.

    The generator learns the best response, the weights that minimise the training loss under every condition near the present
    center; the center follows the gradient of the validation loss through it, by an optimizer of its own:

    .. math:: \min_\phi \mathbb{E}_{c \sim \mathcal{N}(m, s^2)} L_{\mathrm{train}}(G_\phi(z, c), c), \qquad
        \min_m L_{\mathrm{valid}}(G_\phi(z, m))

    In validation and testing the members have the condition found. Hyperparameters of the optimizer can't be searched so: the
    best response does not depend on them.

    References:
        | Stochastic Hyperparameter Optimization through Hypernetworks (Lorraine and Duvenaud, 2018)
        | https://arxiv.org/abs/1802.09419
        | Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions
        | (MacKay et al., 2019)
        | https://arxiv.org/abs/1903.03088

    Args:
        mode: ``"local"``: conditions are drawn around the center, and the response is learnt there. ``"global"``: they are
            drawn evenly over their ranges all the time, for the curve over a hyperparameter; coarser for the same size.
        start: Values to start from, by name; in the middle of its range what is not named.
        lr: Learning rate of the center's Adam, which falls to zero along a cosine; ranges are 2 wide.
        spread: Standard deviation of the draws around the center; ranges are 2 wide.
        warmup: Training steps before the first step of the center.
        every: Training steps between two steps of the center.
        objective: What gives the validation loss: ``"validation_step"``, which must return it, ``"training_step"``, run on a
            validation batch, or a function of the LightningModule and a batch.
        target: The `target` of the `HypernetCallback`, if there are several.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_hypernet import HypernetCallback
        >>> from lightning_hypernet.conditions import L2, log_uniform
        >>> callbacks = [HypernetCallback(conditions={"decay": L2(log_uniform(1e-4, 10))}), HyperparameterSearch()]
    """

    def __init__(
        self,
        mode: str = "local",
        start: Mapping[str, Any] | None = None,
        lr: float = 0.005,
        spread: float = 0.05,
        warmup: int = 100,
        every: int = 1,
        objective: Objective = "validation_step",
        target: str | None = None,
    ) -> None:
        super().__init__()
        self.mode, self.start = choice("mode", mode, ("local", "global")), start
        self.lr, self.spread = real("lr", lr, 0, above=True), real("spread", spread, 0, above=True)
        self.warmup, self.every = whole("warmup", warmup, 0), whole("every", every)
        if not callable(objective):
            choice("objective", objective, ("validation_step", "training_step"))
        self.objective, self.target = objective, target
        self.path: list[SearchStep] = []
        self._point = nn.Parameter(torch.zeros(0))
        self._optimizer = Adam([self._point], lr=self.lr)
        self._callback: HypernetCallback | None = None
        self._batches: Iterator[tuple[Any, int, int]] = iter(())
        self._read = 0
        self._searched: weakref.ref[Hypernet] | None = None

    @property
    def state_key(self) -> str:
        """Tells this callback's state from that of a search for another target."""
        return self._generate_state_key(target=self.target)

    @property
    def conditions(self) -> Conditions:
        """The conditions that are searched.

        Raises:
            RuntimeError: Before training has set the search up.
        """
        conditions = self._callback and self._callback.hypernet.conditions
        if not conditions:
            raise RuntimeError("there is nothing to search before fit has set the HypernetCallback up")
        return conditions

    @property
    def _hypernet(self) -> Hypernet:
        assert self._callback is not None
        return self._callback.hypernet

    @property
    def best_context(self) -> Tensor:
        """The condition found, ``(context_dim,)``, as ``hypernet.ensemble(10, context=search.best_context)`` takes it."""
        return self.conditions.best(self._point)

    @property
    def best(self) -> dict[str, Any]:
        """The hyperparameters found, by name; a list where one has several values."""
        return self.conditions.said(self.best_context)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the HypernetCallback, and start from the middle.

        Raises:
            ValueError: If there is none with conditions before this callback, or there are several.
        """
        callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: next(index for index, one in enumerate(callbacks) if one is self)]
        found = [one for one in before if isinstance(one, HypernetCallback) and self.target in (None, one.target)]
        if len(found) != 1 or not found[0].conditions:
            there = "are several: set target" if len(found) > 1 else "is one without any" if found else "is none before it"
            raise ValueError(
                "a HyperparameterSearch stands in the list of callbacks behind one HypernetCallback with conditions, and there "
                f"{there}"
            )
        self._callback = found[0]
        if self._searched is None or self._searched() is not self._hypernet:
            self._searched = weakref.ref(self._hypernet)
            self.path, self._read = [], 0
            self._at(self.conditions.starting(self.start))

    def _at(self, point: Tensor) -> None:
        self._point = nn.Parameter(point)
        self._optimizer = Adam([self._point], lr=self.lr)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw conditions around the center from now on."""
        self._focus()
        self._batches = islice(validation_batches(trainer), self._read, None)

    def _focus(self) -> None:
        """Let draws, the generator and the members follow the center."""
        if self.mode == "local":
            conditions = self.conditions
            conditions.point, conditions.spread = self._point.detach().clone(), self.spread
            self._hypernet.generator.focus(conditions.best(self._point), self.spread)
        assert self._callback is not None
        for hypernet in (self._hypernet, *self._callback.twins):
            hypernet.member_context = self.best_context

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step the center, when it is due."""
        step = trainer.global_step
        if step <= self.warmup or step % self.every or (self.path and self.path[-1].step == step):
            return
        loss, gradient = self._slope(trainer)
        self._point.grad = gradient
        self._optimizer.param_groups[0]["lr"] = self.lr * self._pace(trainer, step)
        self._optimizer.step()
        with torch.no_grad():
            self._point.copy_(self.conditions.within(self._point))
        self._focus()
        means = {name: float(value.double().mean()) for name, value in self.conditions.values(self.best_context).items()}
        self.path.append(SearchStep(step, loss, means))
        prefix = "hypernet/" if self.target is None else f"hypernet/{self.target}/"
        for name, value in {"validation_loss": loss, **means}.items():
            pl_module.log(f"{prefix}{name}", value, on_step=True, on_epoch=False)

    def _pace(self, trainer: pl.Trainer, step: int) -> float:
        """What the learning rate is multiplied by: a cosine that falls to zero where training ends, if that is known."""
        whole = trainer.estimated_stepping_batches
        return 1.0 if whole == float("inf") else 0.5 * (1 + math.cos(math.pi * min(step / whole, 1.0)))

    def _slope(self, trainer: pl.Trainer) -> tuple[float, Tensor]:
        """The validation loss at the center on the next batch, and its gradient; means over all ranks."""
        read = self._next(trainer)
        with torch.inference_mode(False), torch.enable_grad():
            loss = self._loss(trainer, self.conditions.draw(self._hypernet.samples, self._point), *read)
            if not loss.requires_grad:
                raise ValueError(f"the validation loss that {self.objective!r} gives has no gradient: don't detach it")
            (gradient,) = torch.autograd.grad(loss, self._point)
        if not gradient.isfinite().all():
            raise ValueError("the gradient of the validation loss with respect to the hyperparameters is NaN or infinite")
        both = torch.cat([gradient.flatten(), loss.detach().to(gradient).flatten()])
        both = trainer.strategy.reduce(both.to(trainer.strategy.root_device), reduce_op="mean").to(gradient)
        return float(both[-1]), both[:-1].view_as(gradient)

    def _next(self, trainer: pl.Trainer) -> tuple[Any, int, int]:
        """The next batch of validation data, over and over; its number, and that of its loader."""
        read = next(self._batches, None)
        if read is None:
            self._batches, self._read = validation_batches(trainer), 0
            read = next(self._batches, None)
        if read is None:
            raise ValueError("a search needs validation data: give fit val_dataloaders, and leave limit_val_batches above 0")
        self._read += 1
        return read

    def _loss(self, trainer: pl.Trainer, context: Tensor, batch: Any, *numbers: int) -> Tensor:
        """The validation loss of networks with conditions ``(samples, context_dim)`` or ``(context_dim,)`` on a batch."""
        assert self._callback is not None
        pl_module, hypernet = trainer.lightning_module, self._hypernet
        step = self.objective if isinstance(self.objective, str) else None
        with (
            validating(trainer),
            metrics_kept(pl_module),
            hypernet.step(context.to(hypernet.members.stored.context)),
            hypernet.aside(),
            without_dropout(pl_module, hypernet),
            unlogged(pl_module),
            trainer.precision_plugin.forward_context(),
        ):
            batch = transferred(trainer, batch, numbers[1])
            if step is None:
                assert callable(self.objective)
                result = self.objective(pl_module, batch)
            else:
                result = step_on(hypernet, pl_module, step, self._callback.deal, batch, *numbers)
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = "nothing" if loss is None else shown(loss) if not isinstance(loss, Tensor) else f"{tuple(loss.shape)}"
            raise TypeError(
                f"a search follows the validation loss, and {step or 'objective'} returns {given}: return the loss there, or "
                "set objective='training_step' or a function of the module and a batch"
            )
        return loss

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell of a search that never began."""
        if not self.path:
            warnings.warn(f"the search made no step: training ended within its warmup of {self.warmup} steps", stacklevel=2)

    def curve(
        self, trainer: pl.Trainer, name: str, points: int = 25, batches: int | None = None
    ) -> tuple[list[float], list[float]]:
        """The validation loss over a hyperparameter, the others as they were found; for ``mode="global"``.

        Args:
            trainer: The trainer that has trained, with its validation data.
            name: Of the hyperparameter, one with one value.
            points: How many values of it.
            batches: How many batches are read for each; None: all.

        Returns:
            Its values, and the loss at each.
        """
        conditions, values, losses = self.conditions, [], []
        with evaluating(self._hypernet, mode=True), torch.no_grad():
            for context in conditions.along(self.best_context, name, whole("points", points, 2)):
                values.append(float(conditions.values(context)[name]))
                read = [float(self._loss(trainer, context, *one)) for one in islice(validation_batches(trainer), batches)]
                if not read:
                    raise ValueError("a curve needs validation data: a trainer that has validated, and one batch or more")
                losses.append(fmean(read))
        return values, losses

    def plot(self, name: str, axes: Any = None) -> Any:
        """Draw the path of a hyperparameter, and the validation loss along it.

        Args:
            name: Of the hyperparameter.
            axes: Two axes of matplotlib; None: of a new figure.

        Returns:
            The figure.
        """
        import matplotlib.pyplot as plt

        if name not in self.conditions:
            raise ValueError(f"there is no condition {name!r} to plot; there are {', '.join(self.conditions)}")
        if axes is None:
            _, axes = plt.subplots(2, 1, sharex=True, figsize=(6, 5))
        steps = [one.step for one in self.path]
        axes[0].plot(steps, [one.values[name] for one in self.path])
        axes[0].set_ylabel(name)
        axes[1].plot(steps, [one.loss for one in self.path], lw=0.6)
        axes[1].set(xlabel="training step", ylabel="validation loss")
        return axes[0].figure

    def state_dict(self) -> dict[str, Any]:
        """Where the search stands."""
        path = [(one.step, one.loss, dict(one.values)) for one in self.path]
        return {
            "point": self._point.detach().clone(),
            "optimizer": self._optimizer.state_dict(),
            "path": path,
            "read": self._read,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: If the checkpoint is of other hyperparameters.
        """
        if state_dict["point"].shape != (self.conditions.dim,):
            raise ValueError(
                f"the checkpoint's search has {len(state_dict['point'])} numbers, and these conditions {self.conditions.dim}"
            )
        self._at(state_dict["point"].clone())
        self._optimizer.load_state_dict(state_dict["optimizer"])
        self.path, self._read = [SearchStep(*one) for one in state_dict["path"]], int(state_dict["read"])
