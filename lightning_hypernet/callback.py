"""HypernetCallback: hypernetwork training for any LightningModule, unchanged."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_hypernet.checkpoint import differences, recorded, write
from lightning_hypernet.diversity import WeightedDiversity
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.population import Population
from lightning_hypernet.sampler import plain_options
from lightning_hypernet.training_step import TrainingStep, call_step, loss_of, manual_step, targets_of

if TYPE_CHECKING or importlib.util.find_spec("lightning") is None:
    _Base = pl.Callback
else:
    from lightning.pytorch import Callback as _LightningCallback

    class _Base(pl.Callback, _LightningCallback):
        """A callback of both class trees, so that both trainers and both command lines take it."""


_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class HypernetCallback(_Base):
    """Train a part of a LightningModule as the target of a hypernetwork.

    In `setup`, before optimizers exist, the target is replaced by a `Hypernet`. Every training step draws one population of
    networks; the weighted diversity losses are added to what `training_step` returns and logged as ``hypernet/<name>``, beside
    ``hypernet/member_distance``. Validation, test and prediction use the ensemble of members, whose norm statistics are
    estimated anew before each.

    Args:
        target: Path of the module, such as ``"model"`` or ``"net.backbone"``; ``"."`` is the LightningModule's own forward.
        diversity: Name of a diversity loss or several; or for every name its weight, or its arguments with a ``weight``.
        preset: A whole way of working by its name, ``"deep_ensemble"``, ``"one_family"`` or one of a plug-in: options of this
            callback, which those given beside it change where they are not the default.
        context: Gives the condition of the networks that train on a batch, ``(context_dim,)`` or ``(samples, context_dim)``.
        plugins: Plug-ins beside the installed ones.
        hypernet_options: Arguments of `Hypernet`.

    Raises:
        TypeError: If an option is none of Hypernet's.
        ValueError: If a diversity loss, a preset or another name is unknown.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> callback = HypernetCallback(target="layer", diversity={"entropy": 1e-3}, samples=4)
        >>> trainer = pl.Trainer(
        ...     max_steps=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
        ...     enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        ... )
        >>> trainer.fit(BoringModel())
        >>> len(callback.hypernet.ensemble(10))
        10
    """

    def __init__(
        self,
        target: str = "model",
        diversity: str | Sequence[str] | Mapping[str, float | Mapping[str, Any]] | None = None,
        plugins: Sequence[object] = (),
        preset: str | None = None,
        context: Callable[[Any], Tensor] | None = None,
        **hypernet_options: Any,
    ) -> None:
        super().__init__()
        if preset is not None:
            options = dict(Plugins(plugins).presets.find(preset))
            diversity = options.pop("diversity", None) if diversity is None else diversity
            defaults = {name: one.default for name, one in inspect.signature(Hypernet).parameters.items()}
            plain, default = recorded(hypernet_options), recorded(defaults)
            given = {name: value for name, value in hypernet_options.items() if plain[name] != default.get(name)}
            hypernet_options = {**hypernet_options, **options, **given}
        known = [name for name in inspect.signature(Hypernet).parameters if name not in ("target", "plugins")]
        unknown = sorted(set(hypernet_options) - set(known))
        if unknown:
            raise TypeError(f"HypernetCallback has no options {', '.join(unknown)}; there are {', '.join(known)}")
        self.target = target
        self.plugins = tuple(plugins)
        self.hypernet_options = hypernet_options
        self.context = context
        self._diversity = diversity
        self._hypernet: Hypernet | None = None
        self._step: Callable[..., Any] | None = None
        self._drawn: Population | None = None  # until the backward pass is over
        self._asked()  # a mistake is told here, not when training starts

    @property
    def hypernet(self) -> Hypernet:
        """The Hypernet that stands where the target was.

        Raises:
            RuntimeError: Before a trainer has set the callback up.
        """
        if self._hypernet is None:
            raise RuntimeError("the Hypernet is built when a trainer sets the callback up; run fit, validate or test first")
        return self._hypernet

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the Hypernet in the target's place, once."""
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDED:
            raise ValueError(f"{strategy} shards parameters, which a hypernetwork generates; use DDP or a single device")
        if self.target == ".":
            self._hypernet = self._wrap_module(pl_module)
            return
        found = _submodule(pl_module, self.target)
        if found is None and is_overridden("configure_model", pl_module):
            pl_module.configure_model()
            found = _submodule(pl_module, self.target)
        if found is None:
            names = [name for name, _ in pl_module.named_modules() if name]
            raise ValueError(
                f"{type(pl_module).__name__} has no module {self.target!r}; set target to one of {', '.join(names[:10])}, or "
                "to '.' for its own forward"
            )
        if isinstance(found, Hypernet):
            self._take_over(found)
            return
        _refuse_shared(pl_module, found, self.target)
        self._hypernet = self._build(found)
        _warn_of_hidden(self.target, found, self._hypernet)
        parent, _, name = self.target.rpartition(".")
        setattr(pl_module.get_submodule(parent), name, self._hypernet)

    def _build(self, target: nn.Module) -> Hypernet:
        hypernet = Hypernet(target, plugins=self.plugins, **self.hypernet_options)
        _set_diversity(hypernet, self._asked())
        return hypernet

    def _asked(self) -> WeightedDiversity:
        return Plugins(self.plugins).build_diversity(self._diversity)

    def _take_over(self, hypernet: Hypernet) -> None:
        """Use a Hypernet that another callback or the user put there, if it is what was asked for."""
        different = differences(hypernet.options, plain_options(self.hypernet_options, Plugins(self.plugins)))
        if different:
            raise ValueError(f"the target {self.target!r} is a Hypernet already, with {'; '.join(different)}")
        asked = self._asked()
        if not asked.same(hypernet.diversity):
            _set_diversity(hypernet, asked)
        self._hypernet = hypernet

    def _wrap_module(self, pl_module: pl.LightningModule) -> Hypernet:
        """Generate the LightningModule's own parameters; its forward becomes the Hypernet's."""
        present = getattr(pl_module, "hypernet", None)
        if isinstance(present, Hypernet):
            self._take_over(present)
            return present
        trainer, pl_module._trainer = pl_module._trainer, None
        try:
            hypernet = self._build(pl_module)
        finally:
            pl_module._trainer = trainer
        for names in hypernet.banks.aliases.values():
            for name in names:
                path, _, key = name.rpartition(".")
                pl_module.get_submodule(path)._parameters[key] = None
        for name in hypernet.banks.ordinary:
            path, _, key = name.rpartition(".")
            hypernet.target.get_submodule(path)._parameters[key] = pl_module.get_parameter(name)
        pl_module.hypernet = hypernet
        pl_module.forward = hypernet.__call__  # type: ignore[method-assign]
        return hypernet

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap `training_step`, and see that the Hypernet trains and the optimizers have the generator's parameters.

        Trainers leave every module in the mode it is in, and loaders of pretrained models return them in evaluation mode: the
        modules of the target stay so, the Hypernet itself does not.
        """
        if any(isinstance(module, nn.SyncBatchNorm) for module in self.hypernet.target.modules()):
            raise ValueError(
                f"SyncBatchNorm in {self.target!r} normalises over all ranks, which train different networks; leave "
                "sync_batchnorm off: every network has norm statistics of its own"
            )
        self.hypernet.training = True
        self.hypernet.generator.train()
        trained = {
            id(parameter)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        if not all(id(parameter) in trained for parameter in self.hypernet.parameters() if parameter.requires_grad):
            warnings.warn(
                f"the optimizers of {type(pl_module).__name__} miss parameters of the Hypernet at {self.target!r}; build them "
                "in configure_optimizers from self.parameters()",
                stacklevel=2,
            )
        self._step = vars(pl_module).get("training_step")
        pl_module.training_step = TrainingStep(self._around, pl_module, pl_module.training_step)  # type: ignore[method-assign]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Estimate the members' norm statistics anew, for use without the trainer."""
        self.hypernet.settle_statistics()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give `training_step` back."""
        self._unwrap(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give `training_step` back."""
        self._unwrap(pl_module)

    def _unwrap(self, pl_module: pl.LightningModule) -> None:
        if isinstance(vars(pl_module).get("training_step"), TrainingStep):
            del pl_module.training_step
            if self._step is not None:
                pl_module.training_step = self._step  # type: ignore[method-assign]

    def _around(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """One `training_step` with the networks of one population, and its diversity added to the loss."""
        hypernet, diversity = self.hypernet, self.hypernet.diversity
        assert isinstance(diversity, WeightedDiversity)
        if not pl_module.automatic_optimization:
            if self.context is not None:
                raise RuntimeError("under manual optimization open hypernet.step(context=...) yourself; leave out context=")
            return manual_step(hypernet, diversity, original, *args, **kwargs)
        batch = args[0] if args else next(iter(kwargs.values()), None)
        with hypernet.step(None if self.context is None else self.context(batch)), hypernet.executor.feed.of(batch):
            result = call_step(original, self.target, *args, **kwargs)
            if result is None:
                return None
            loss = loss_of(result)
            if hypernet.population is None:
                raise RuntimeError(f"training_step never called {self.target!r}, the target of the hypernetwork")
            self._drawn = hypernet.population
            if diversity.losses:
                if hypernet.population.targets is None:
                    hypernet.population.targets = targets_of(batch)
                values = diversity(hypernet.population)
                loss = loss + diversity.total(values)
                for name, value in values.items():
                    pl_module.log(f"hypernet/{name}", value.detach())
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and trainer.global_step % every == 0:
                pl_module.log("hypernet/member_distance", hypernet.population.distance())
            return {**result, "loss": loss} if isinstance(result, Mapping) else loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Let the networks of the step go."""
        self._drawn = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before training there are no norm statistics to speak of."""
        self._estimated = self.hypernet.members.estimated.clone()
        self.hypernet.members.estimated.fill_(1.0)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on missing norm statistics are told."""
        self.hypernet.members.estimated.copy_(self._estimated)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Estimate the members' statistics with those of the other ranks; a rank alone does when evaluation first asks."""
        if trainer.world_size > 1:
            self.hypernet.settle_statistics()

    on_test_start = on_predict_start = on_validation_start

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store norm statistics that fit the weights, and the plain recipe that `Hypernet.from_checkpoint` reads."""
        prefix = "hypernet." if self.target == "." else f"{self.target}."
        self.hypernet.settle_statistics()
        for average in _averages(trainer, self.hypernet):
            average.members.recent = self.hypernet.members.recent
            average.members.estimated.zero_()
            average.settle_statistics()
        state = self.hypernet.state_dict()
        checkpoint["state_dict"].update({f"{prefix}{name}": value for name, value in state.items()})
        write(checkpoint, self.target, prefix, self.hypernet.options, self.hypernet.needs)


def _averages(trainer: pl.Trainer, hypernet: Hypernet) -> list[Hypernet]:
    """The copies that other callbacks keep of a Hypernet, such as averages of its weights."""
    held = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
    modules = [module for value in held if isinstance(value, nn.Module) for module in value.modules()]
    return [one for one in modules if isinstance(one, Hypernet) and one is not hypernet and one.same_as(hypernet)]


def _set_diversity(hypernet: Hypernet, diversity: WeightedDiversity) -> None:
    if diversity.losses:
        with torch.no_grad():
            diversity.prepare(hypernet.decode(hypernet.members.latents[:2]))
    hypernet.diversity = diversity.to(hypernet.members.device)


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _warn_of_hidden(path: str, target: nn.Module, hypernet: Hypernet) -> None:
    """The LightningModule may mean the target's attribute where it gets the Hypernet's."""
    both = set(dir(target)) & set(dir(hypernet)) - set(dir(nn.Module()))
    hidden = sorted(name for name in both if not name.startswith("_"))
    if hidden:
        warnings.warn(
            f"{', '.join(hidden)}: {path!r} has these names and the Hypernet in its place too, which answers to them from now "
            "on; rename them, if they are used from outside the target",
            stacklevel=3,
        )


def _refuse_shared(pl_module: nn.Module, target: nn.Module, path: str) -> None:
    """Parameters that live both in the target and outside of it can't be generated."""
    inside = {id(parameter) for parameter in target.parameters()}
    shared = [
        name
        for name, parameter in pl_module.named_parameters(remove_duplicate=False)
        if id(parameter) in inside and not name.startswith(f"{path}.")
    ]
    if shared:
        raise ValueError(
            f"{', '.join(shared)} of {type(pl_module).__name__} are also parameters of the target {path!r}; choose a target "
            "that holds both, or '.'"
        )
