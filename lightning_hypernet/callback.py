"""HypernetCallback: hypernetwork training for any LightningModule, unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from lightning_hypernet.branching import Branching
from lightning_hypernet.checkpoint import differences
from lightning_hypernet.conditions import Condition, Conditions
from lightning_hypernet.diversity import WeightedDiversity
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.options import check_context, check_options_of_hypernet, counts_of, plain_options, with_preset
from lightning_hypernet.placing import (
    Moves,
    built,
    check_order,
    copies_of,
    put,
    put_copies,
    refuse_shared,
    set_conditions,
    set_diversity,
    take_conditions,
    warn_of_hidden,
    wrap_whole,
)
from lightning_hypernet.plugins import plugins_with
from lightning_hypernet.population import Population
from lightning_hypernet.sharding import keep_apart, shard_later, shards
from lightning_hypernet.storing import settle_averages, store, take
from lightning_hypernet.task_step import Support, check_tasks, tasks_step
from lightning_hypernet.training_step import (
    Split,
    call_step,
    check_deal,
    check_joined,
    check_optimizers,
    condition_of,
    coordinates_of,
    dealt_step,
    examples_of,
    give_back_steps,
    go_around,
    loss_of,
    manual_step,
    targets_of,
    weights_of,
)
from lightning_hypernet.trees import BaseCallback
from lightning_hypernet.two_passes import TwoPasses, check_backward, is_scaled, takes_two_passes
from lightning_hypernet.values import choice, several, texts, unknown


class HypernetCallback(BaseCallback):
    """Train a part of a LightningModule as the target of a hypernetwork.

    In `setup`, before optimizers exist, the target is replaced by a `Hypernet`. Every training step draws one population of
    networks; the weighted diversity losses are added to what `training_step` returns and logged as ``hypernet/<name>``, beside
    ``hypernet/member_distance`` of two networks or more. Validation, test and prediction use the ensemble of members, whose
    norm statistics are estimated anew before each.

    Args:
        target: Path of the module, such as ``"model"`` or ``"net.backbone"``; ``"."`` is the LightningModule's own forward.
        diversity: Name of a diversity loss or several; or for every name its weight, or its arguments with a ``weight``.
        preset: A way of working: ``"ensemble"``, ``"deep_ensemble"``, ``"finetune"``, ``"manifold"``, ``"reproduce"`` or one of
            a plug-in: options of this callback, which those given beside it change where they are not the default.
        context: Gives the condition of the networks that train on a batch, ``(context_dim,)`` or ``(samples, context_dim)``.
        conditions: Hyperparameters that networks are generated for, in place of a context of your own: for every name a
            `Condition`, or a mapping with its ``name``, its ``range``, as ``{"log_uniform": [1e-4, 1]}``, and options:
            ``"l2"``, ``"dropout"``, ``"label_smoothing"``, ``"diversity_weight"``, ``"given"`` for what `training_step` reads,
            or one of a plug-in. Every step draws them anew; see `HyperparameterSearch`.
        deal: ``"inputs"``: the inputs of every call of the target are dealt out to the networks. ``"batch"``: the batch of
            `training_step` is, and the step is run once for each network, on its part; losses and what is logged are averaged.
            Or a function that makes a list of parts of the batch and a number of networks, for batches of a kind of their own.
        validation: ``"ensemble"``: `validation_step` sees the joined outputs. ``"members"``: it is run once for each member,
            and what is logged is averaged.
        copies: Paths of modules that are copies of the target, such as momentum encoders and teachers. Each becomes a copy of
            the Hypernet without gradients, whose networks have the Hypernet's latents in a training step. None: they are
            found: of the target's class, with its parameters, equal to them or frozen.
        backward: ``"one_pass"``: all networks keep their weights and activations until the backward pass. ``"two_pass"``, which
            needs the batch dealt out: a few at a time do; the gradients are the same (see `TwoPasses`). ``"auto"``: two passes
            where the networks' weights hold more than 1 GiB and nothing speaks against them.
        branch: Share of the training steps in which one network trains alone, the mean weights of the first component, as the
            plain network would and at its cost; then all components start from it, see `Branching`.
        support: With an ``encoder`` among the options, a batch holds tasks, and each step sees one task at a time, with the
            network that the encoder makes of its data set: what this function gives of a task; None: see `support_of`.
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
        conditions: Mapping[str, Condition | Mapping[str, Any]] | None = None,
        deal: str | Split = "inputs",
        validation: str = "ensemble",
        copies: Sequence[str] | None = None,
        backward: str = "one_pass",
        branch: float | None = None,
        support: Support | None = None,
        **hypernet_options: Any,
    ) -> None:
        super().__init__()
        if preset is not None:
            defaults = {name: one.default for name, one in inspect.signature(Hypernet).parameters.items()}
            hypernet_options, theirs = with_preset(preset, hypernet_options, defaults, plugins_with(plugins))
            diversity = theirs["diversity"] if diversity is None else diversity
            branch = theirs["branch"] if branch is None else branch
        known = [name for name in inspect.signature(Hypernet).parameters if name not in ("target", "plugins")]
        own = [name for name in inspect.signature(HypernetCallback).parameters if name != "hypernet_options"]
        wrong = unknown("HypernetCallback", hypernet_options, [*own, *known])
        if wrong:
            raise TypeError(wrong)
        if not isinstance(target, str) or not target:
            raise TypeError(f"target must be the path of a module, as 'model', or '.', not {target!r}")
        check_context(context, conditions, hypernet_options.get("context_dim", 0))
        self.conditions = plugins_with(plugins).build_conditions(conditions)
        self.target = target
        self.plugins = several("plugins", plugins, "plug-ins")
        hypernet_options.update(counts_of(hypernet_options))
        self.hypernet_options = hypernet_options
        self.context = context
        self._diversity = diversity
        self._hypernet: Hypernet | None = None
        self._checked = self.takes_two_passes = False
        self._moves = Moves()
        self.twins: list[Hypernet] = []
        self._twins: list[str] = []
        self._drawn: Population | None = None  # until the backward pass is over
        choice("validation", validation, ("ensemble", "members"))
        self.deal, self.validation, self.backward = check_deal(deal), validation, backward
        self.copies = None if copies is None else texts("copies", copies, "path")
        others = {"context": context, "conditions": conditions, "backward": backward != "one_pass"}
        self.support = check_tasks(hypernet_options.get("encoder"), support, deal, others)
        found, asked = plugins_with(self.plugins), self._asked()  # a mistake is told here, not when training starts
        check_backward(backward, deal != "inputs", asked)
        config = check_options_of_hypernet(hypernet_options, found)
        given = {"context": context is not None, "conditions": conditions is not None}
        self._branching = Branching(branch or 0.0, config, hypernet_options, **given)
        asked.check(found.distributions.chosen(hypernet_options.get("distribution", "generator"))[0], callable(deal))

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
        """Put the Hypernet in the target's place, once, and go around the steps."""
        check_order(trainer, self)
        if shards(trainer):
            shard_later(trainer, pl_module, self.target, lambda: self.hypernet, self.backward)
        if self.deal != "inputs" and not pl_module.automatic_optimization:
            raise ValueError(
                "under manual optimization deal the batch out yourself: leave out deal=, and take the loss in training_step as "
                "sum(share * loss(part) for part, share in self.model.deal(batch)), within self.model.step()"
            )
        if self.target == ".":
            if isinstance(present := getattr(pl_module, "hypernet", None), Hypernet):
                self._take_over(present)
            else:
                self._hypernet = wrap_whole(pl_module, self._build)
        elif built(pl_module, self.target, lambda: self._place(pl_module)):
            self._place(pl_module)
        if stage == "fit":
            go_around(self._around, pl_module, "training_step")
        encodes = self.hypernet_options.get("encoder") is not None
        if encodes or (self.validation == "members" and stage in ("fit", "validate")):
            name = {"test": "test_step", "predict": "predict_step"}.get(stage, "validation_step")
            go_around(self._validated, pl_module, name)

    def _place(self, pl_module: pl.LightningModule) -> None:
        found = pl_module.get_submodule(self.target)
        if isinstance(found, Hypernet):
            self._take_over(found)
            names = self._twins if self.copies is None else list(self.copies)
        else:
            refuse_shared(pl_module, found, self.target)
            names = copies_of(pl_module, self.target, found, self.copies)
            self._hypernet = self._build(found)
            warn_of_hidden(self.target, found, self._hypernet)
            put(pl_module, self.target, self._hypernet)
        self._twins = names
        self.twins = put_copies(pl_module, self.target, self.hypernet, names, told=self.copies is not None)

    def _build(self, target: nn.Module) -> Hypernet:
        conditions = Conditions(self.conditions, target) if self.conditions else None
        if conditions is not None:
            self.hypernet_options["context_dim"] = conditions.dim
        hypernet = self._branching.plant(Hypernet(target, plugins=self.plugins, **self.hypernet_options), target)
        set_diversity(hypernet, self._asked(), callable(self.deal))
        set_conditions(hypernet, conditions)
        return hypernet

    def _asked(self) -> WeightedDiversity:
        return plugins_with(self.plugins).build_diversity(self._diversity)

    def _take_over(self, hypernet: Hypernet) -> None:
        """Use a Hypernet that another callback or the user put there, if it is what was asked for."""
        different = differences(hypernet.options, plain_options(self.hypernet_options, plugins_with(self.plugins)))
        if different:
            raise ValueError(f"the target {self.target!r} is a Hypernet already, with {'; '.join(different)}")
        self._branching.take(hypernet, self._hypernet)
        asked = self._asked()
        if not asked.same(hypernet.diversity):
            set_diversity(hypernet, asked, callable(self.deal))
        take_conditions(hypernet, self.conditions, self.target)
        self._hypernet = hypernet

    @property
    def state_key(self) -> str:
        """Tells this callback's state from that of one with another target."""
        return self._generate_state_key(target=self.target)

    def state_dict(self) -> dict[str, Any]:
        """The random numbers of the conditions."""
        conditions = self._hypernet and self._hypernet.conditions
        return {"conditions": conditions.state_dict()} if conditions else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the conditions' random numbers."""
        if state_dict and self.hypernet.conditions is not None:
            self.hypernet.conditions.load_state_dict(state_dict["conditions"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that the Hypernet trains and the optimizers have the generator's parameters.

        Trainers leave every module in the mode it is in, and loaders of pretrained models return them in evaluation mode: the
        modules of the target stay so, the Hypernet itself does not.

        Raises:
            ValueError: If an optimizer has parameters that are generated now, or norm layers are synchronized.
        """
        if any(isinstance(module, nn.SyncBatchNorm) for module in self.hypernet.target.modules()):
            raise ValueError(
                f"SyncBatchNorm in {self.target!r} normalises over all ranks, which train different networks; leave "
                "sync_batchnorm off: every network has norm statistics of its own"
            )
        self.hypernet.training = True
        self.hypernet.generator.train()
        backward = "one_pass" if shards(trainer) else self.backward
        self.takes_two_passes = takes_two_passes(backward, self.deal != "inputs", self.hypernet, is_scaled(trainer))
        keep_apart(trainer.optimizers)
        check_optimizers(trainer.optimizers, pl_module, self.hypernet, self.target)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the examples; let copies of the Hypernet made since follow it, as a teacher made in `on_fit_start` does."""
        if isinstance(self.hypernet.diversity, WeightedDiversity):
            self.hypernet.diversity.see_data(examples_of(trainer))
        self._branching.begin(trainer, pl_module, self.hypernet)
        others = [one for one in pl_module.modules() if isinstance(one, Hypernet) and one is not self.hypernet]
        for other in others if self.copies is None else ():
            if other.same_as(self.hypernet) and not any(parameter.requires_grad for parameter in other.parameters()):
                other.follow(self.hypernet)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Let the components branch, if it is time."""
        self._branching.branch(trainer, pl_module, self.hypernet)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Estimate the members' statistics anew, for use without the trainer."""
        self._branching.end(self.hypernet)
        self._settle()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the steps back."""
        give_back_steps(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the steps back."""
        give_back_steps(pl_module)

    def _around(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """One `training_step` with the networks of one population, and its diversity added to the loss."""
        hypernet, diversity = self.hypernet, self.hypernet.diversity
        assert isinstance(diversity, WeightedDiversity)
        if not (hypernet.training and trainer.training):
            return original(*args, **kwargs)
        if not pl_module.automatic_optimization:
            if self.context is not None or self.conditions:
                raise RuntimeError("under manual optimization open hypernet.step(context=...) yourself; leave out conditions")
            return manual_step(hypernet, diversity, original, *args, **kwargs)
        batch = args[0] if args else next(iter(kwargs.values()), None)
        with condition_of(hypernet, self.context, batch):
            passes = TwoPasses(hypernet, diversity) if self.takes_two_passes and not hypernet.generator.trunk else None
            if hypernet.task_encoder is not None:
                result = tasks_step(hypernet, pl_module, original, self.support, *args, **kwargs)
            elif self.deal == "inputs":
                with hypernet.executor.feed.of(batch):
                    result = call_step(original, self.target, *args, **kwargs)
            else:
                split = None if isinstance(self.deal, str) else self.deal
                with self._moves.watched(dict(zip(self._twins, self.twins, strict=True)), hypernet.samples):
                    result = dealt_step(hypernet, pl_module, original, split, passes, *args, **kwargs)
            if result is None:
                return None
            loss = loss_of(result, batch, scaled=is_scaled(trainer))
            if hypernet.population is None:
                raise RuntimeError(f"training_step never called {self.target!r}, the target of the hypernetwork")
            self._drawn = hypernet.population
            if hypernet.population.targets is None:
                hypernet.population.targets = targets_of(batch)
            if hypernet.generator.trunk:
                return result
            if not self._checked:
                self._checked = check_joined(hypernet, hypernet.population)
            penalty = None if hypernet.conditions is None else hypernet.conditions.penalty(hypernet.population)
            if penalty is not None:
                loss = loss + penalty
                self._log(trainer, pl_module, "penalty", penalty.detach())
            if diversity.losses:
                values = (passes and passes.values) or diversity(hypernet.population)
                loss = loss + diversity.total(values, weights_of(hypernet))
                for name, value in {**values, **diversity.parts()}.items():
                    self._log(trainer, pl_module, name, value.detach())
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and trainer.global_step % every == 0 and len(hypernet.population) > 1:
                self._log(trainer, pl_module, "member_distance", hypernet.population.distance(*coordinates_of(diversity)))
            return {**result, "loss": loss} if isinstance(result, Mapping) else loss

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, value: Tensor) -> None:
        """Log a value, under several ranks their mean over an epoch; with the target's name where there are several."""
        several = sum(isinstance(one, HypernetCallback) for one in trainer.callbacks) > 1  # type: ignore[attr-defined]
        prefix = f"hypernet/{self.target}/" if several else "hypernet/"
        ranks = trainer.world_size > 1
        pl_module.log(f"{prefix}{name}", value, on_step=not ranks, on_epoch=ranks, sync_dist=ranks)

    def _validated(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """One step for each member, on the whole batch; or for each task, on what is its own."""
        if self.hypernet.task_encoder is not None:
            return tasks_step(self.hypernet, pl_module, original, self.support, *args, **kwargs)
        return dealt_step(self.hypernet, pl_module, original, None, None, *args, **kwargs)

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
            self._settle()

    on_test_start = on_predict_start = on_validation_start

    def _settle(self) -> None:
        for hypernet in (self.hypernet, *self.twins):
            hypernet.settle_statistics()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell of options that are others than in the checkpoint, where it can be loaded all the same."""
        take(checkpoint, self.target, self.hypernet)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store norm statistics that fit the weights, and the plain recipe that `Hypernet.from_checkpoint` reads."""
        self._settle()
        settle_averages(trainer, self.hypernet)
        for target, hypernet in zip((self.target, *self._twins), (self.hypernet, *self.twins), strict=True):
            store(checkpoint, target, hypernet, trainer)
