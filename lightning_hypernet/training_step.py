"""Steps: what goes around the steps of a LightningModule."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from lightning_hypernet.diversity import Entropy, WeightedDiversity
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.population import Population
from lightning_hypernet.target.reduction import check_reduction, refuse_regression
from lightning_hypernet.two_passes import TwoPasses
from lightning_hypernet.values import guess

_TARGET_KEYS = ("targets", "target", "labels", "label", "y")
Split = Callable[[Any, int], Sequence[Any]]
"""Makes a list of parts of a batch and a number of networks."""


def check_deal(deal: Any) -> str | Split:
    """A way to deal a batch out, as it is given.

    Raises:
        ValueError: If it is none.
    """
    if deal not in ("inputs", "batch") and not callable(deal):
        near = guess(deal, ("inputs", "batch"))
        raise ValueError(
            f"deal must be 'inputs', 'batch' or a function of a batch and a number of networks, not {deal!r}{near}"
        )
    dealt: str | Split = deal
    return dealt


class Step:
    """Takes the place of a step of a LightningModule while it runs; copies of the module have their own step back.

    Args:
        around: What runs the step, as ``around(trainer, pl_module, original, *args, **kwargs)``; a method of the callback.
        pl_module: The LightningModule.
        name: Which step.
    """

    def __init__(self, around: Callable[..., Any], pl_module: pl.LightningModule, name: str) -> None:
        self.before = vars(pl_module).get(name)
        original = getattr(pl_module, name)
        functools.update_wrapper(self, original)
        self.around, self._pl_module, self.original, self._name = around, pl_module, original, name
        setattr(pl_module, name, self)

    @property
    def __code__(self) -> Any:
        """That of the step, which trainers compare to see whether there is one."""
        return self.original.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step."""
        return self.around(self._pl_module.trainer, self._pl_module, self.original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _own_step(memo.get(id(self._pl_module), self._pl_module), self._name)

    def __reduce__(self) -> Any:
        return _own_step, (self._pl_module, self._name)


def go_around(around: Callable[..., Any], pl_module: pl.LightningModule, name: str) -> None:
    """Go around a step, once; what other callbacks have put around it stays."""
    step = vars(pl_module).get(name)
    while isinstance(step, Step):
        if step.around == around:
            return
        step = step.before
    Step(around, pl_module, name)


def original_step(pl_module: pl.LightningModule, name: str) -> Callable[..., Any]:
    """A step as it is without what callbacks have put around it."""
    step: Any = getattr(pl_module, name)
    while isinstance(step, Step):
        step = step.original
    called: Callable[..., Any] = step
    return called


def give_back_steps(pl_module: nn.Module) -> None:
    """Put the steps back that a LightningModule had."""
    for name, step in [(name, value) for name, value in vars(pl_module).items() if isinstance(value, Step)]:
        before: Any = step
        while isinstance(before, Step):
            before = before.before
        delattr(pl_module, name)
        if before is not None:
            setattr(pl_module, name, before)


def _own_step(pl_module: pl.LightningModule, name: str) -> Any:
    """The step of a module's class."""
    return types.MethodType(getattr(type(pl_module), name), pl_module)


@contextmanager
def condition_of(hypernet: Hypernet, context: Callable[[Any], Tensor] | None, batch: Any) -> Iterator[None]:
    """Within, a training step runs, whose networks have conditions: drawn, or as a function gives them of the batch."""
    conditions = hypernet.conditions
    if conditions is None:
        with hypernet.step(None if context is None else context(batch)):
            yield
        return
    drawn = conditions.draw(hypernet.samples)
    with hypernet.step(drawn.to(hypernet.members.stored.context)), conditions.around_step(drawn, hypernet.of_examples):
        yield


def weights_of(hypernet: Hypernet) -> dict[str, Tensor]:
    """The weights of diversity losses in this step that are conditions."""
    context = None if hypernet.population is None else hypernet.population.latents.context
    return {} if hypernet.conditions is None or context is None else hypernet.conditions.weights(context)


def call_step(step: Callable[..., Any], target: str, *args: Any, **kwargs: Any) -> Any:
    """Run a step.

    Raises:
        RuntimeError: If it calls a part of the module whose weights are generated for the whole alone.
    """
    try:
        return step(*args, **kwargs)
    except (TypeError, AttributeError) as error:
        if target != "." or "NoneType" not in str(error):
            raise
        raise RuntimeError(
            "training_step calls a part of the module whose weights are generated for self(...) alone; call self(...), or set "
            "the callback's target to that part"
        ) from error


def dealt_step(
    hypernet: Hypernet,
    pl_module: pl.LightningModule,
    step: Callable[..., Any],
    split: Split | None,
    passes: TwoPasses | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a step once for each network, on its part of the batch.

    Args:
        hypernet: The Hypernet.
        pl_module: The LightningModule, whose logged values are averaged over networks, and logged once.
        step: The step.
        split: Deals the batch out; None: as `Hypernet.deal` does.
        passes: Takes the loss of every network and its gradient; None: networks keep their graphs until the backward pass.
        args: Arguments of the step, the batch first.
        kwargs: Its keyword arguments.

    Returns:
        What it returns, scalars averaged over networks, weighted by the sizes of their parts, a list of anything else; None if
        every network returned None.
    """
    name, batch = (None, args[0]) if args else next(iter(kwargs.items()))
    results, shares, losses = [], [], []
    with _averaged_logs(pl_module) as logs, hypernet.in_groups(None if passes is None else passes.size):
        for index, (part, share) in enumerate(hypernet.deal(batch, split)):
            logs.share = share
            with hypernet.executor.feed.of(part):
                result = step(part, *args[1:], **kwargs) if name is None else step(**{**kwargs, name: part})
            if hypernet.population is not None and hypernet.population.targets is None:
                hypernet.population.targets = targets_of(part)
            if passes is None:
                losses.append(result.get("loss") if isinstance(result, Mapping) else result)
            else:
                result = passes.take(index, result, share)
            if result is not None:
                results.append(result)
                shares.append(share)
    if not results:
        return None
    scalars = [one.reshape(()) for one in losses if isinstance(one, Tensor) and one.numel() == 1]
    if hypernet.population is not None and len(scalars) == len(hypernet.population):
        hypernet.population.losses = torch.stack(scalars)
    mean: Any = None
    if all(isinstance(one, Mapping) for one in results):
        mean = {key: _mean([one[key] for one in results], shares) for key in results[0]}
    else:
        mean = _mean(results, shares)
    return mean if passes is None else passes.hand_out(mean)


def _mean(values: Sequence[Any], shares: Sequence[float]) -> Any:
    if all(isinstance(one, (int, float)) or (isinstance(one, Tensor) and one.numel() == 1) for one in values):
        return sum(value * share for value, share in zip(values, shares, strict=True)) / sum(shares)
    return list(values)


class _Logs:
    """Values that networks log, kept until all have."""

    def __init__(self) -> None:
        self.share = 1.0
        self.kept: dict[str, tuple[list[Any], list[float], dict[str, Any]]] = {}

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Take a value, in place of `LightningModule.log`."""
        values, shares, options = self.kept.setdefault(name, ([], [], {"args": args, **kwargs}))
        values.append(value.detach() if isinstance(value, Tensor) else value)
        shares.append(self.share)
        if len(values) > 1 and kwargs.get("batch_size") is not None:
            options["batch_size"] += kwargs["batch_size"]


@contextmanager
def _averaged_logs(pl_module: pl.LightningModule) -> Iterator[_Logs]:
    """Within, what is logged is kept; afterwards it is logged once, averaged over networks."""
    logs, before = _Logs(), vars(pl_module).get("log")
    pl_module.log = logs.log  # type: ignore[method-assign]
    try:
        yield logs
    finally:
        del pl_module.log
        if before is not None:
            pl_module.log = before  # type: ignore[method-assign]
    for name, (values, shares, options) in logs.kept.items():
        mean = _mean(values, shares)
        pl_module.log(name, values[-1] if isinstance(mean, list) else mean, *options.pop("args"), **options)


@contextmanager
def unlogged(pl_module: pl.LightningModule) -> Iterator[None]:
    """Within, what is logged is forgotten."""
    before = {name: vars(pl_module)[name] for name in ("log", "log_dict") if name in vars(pl_module)}
    for name in ("log", "log_dict"):
        setattr(pl_module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            delattr(pl_module, name)
        for name, value in before.items():
            setattr(pl_module, name, value)


def step_on(hypernet: Hypernet, pl_module: pl.LightningModule, name: str, deal: str | Split, batch: Any, *numbers: int) -> Any:
    """What a step of a LightningModule returns for a batch, of the networks of the present step of the Hypernet.

    Args:
        hypernet: The Hypernet.
        pl_module: The LightningModule.
        name: Which step.
        deal: As of `HypernetCallback`.
        batch: The batch.
        numbers: Its number and that of its loader, as far as the step takes them.
    """
    step = original_step(pl_module, name)
    taken = [one.kind for one in inspect.signature(step).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in taken:
        numbers = numbers[: sum(kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD) for kind in taken) - 1]
    if deal == "inputs":
        return step(batch, *numbers)
    return dealt_step(hypernet, pl_module, step, None if isinstance(deal, str) else deal, None, batch, *numbers)


def manual_step(hypernet: Hypernet, diversity: WeightedDiversity, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a step under manual optimization.

    Raises:
        RuntimeError: If there are diversity losses, and the step did not read them.
    """
    hypernet.diversity_read = False
    try:
        result = step(*args, **kwargs)
    finally:
        hypernet.population = None
    if diversity.losses and not hypernet.diversity_read:
        raise RuntimeError(
            "under manual optimization the diversity losses can't be added for you; add hypernet.diversity_loss() of the "
            "target to the loss in training_step"
        )
    return result


def loss_of(result: Any, batch: Any, scaled: bool = False) -> Tensor:
    """The loss in what a step returns, a scalar.

    Args:
        result: What it returns.
        batch: Its batch.
        scaled: Whether a loss may be infinite, since steps in half precision that overflow are skipped.

    Raises:
        TypeError: If there is none.
        ValueError: If it is no single number, NaN or infinite.
    """
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        kind = f"a dict of {list(result)}" if isinstance(result, Mapping) else type(result).__name__
        raise TypeError(f"training_step must return a tensor or a dict with a tensor 'loss', not {kind}")
    if loss.numel() != 1:
        raise ValueError(f"training_step must return one loss, a scalar, not {tuple(loss.shape)}: take the mean")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            "the loss that training_step returns has no gradient: it is detached, or no part of it came from the target"
        )
    if not (scaled or torch.isfinite(loss).all()):
        kind = "NaN" if loss.isnan().any() else "infinite"
        where = _not_finite(batch)
        reason = f"the batch holds {where}" if where else "lower the learning rate or clip gradients"
        raise ValueError(f"the loss that training_step returns is {kind}; {reason}")
    return loss


def _not_finite(batch: Any) -> str:
    """Where a batch holds NaN or infinite numbers, in words."""
    for path, leaf in tree_flatten_with_path(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
            return f"{'NaN' if leaf.isnan().any() else 'infinite numbers'} at batch{''.join(map(str, path))}"
    return ""


def examples_of(trainer: pl.Trainer) -> int | None:
    """How many training examples all ranks have together; None where loaders do not tell."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or trainer.overfit_batches:  # type: ignore[attr-defined]
        return None
    batches = [one for one in (loader.batch_sampler, loader.sampler) if isinstance(one, BatchSampler)]
    if not batches:
        return None
    sampler: Any = batches[0].sampler
    if isinstance(sampler, DistributedSampler):
        return len(sampler.dataset)  # type: ignore[arg-type]
    return len(sampler) * trainer.world_size if hasattr(sampler, "__len__") else None


def check_optimizers(optimizers: Sequence[Any], pl_module: pl.LightningModule, hypernet: Hypernet, target: str) -> None:
    """See that the optimizers have the Hypernet's parameters, and none that are generated.

    Raises:
        ValueError: If an optimizer has parameters that are generated now.
    """
    trained = [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]
    generated = hypernet.executor.replaced(trained)
    if generated:
        raise ValueError(
            f"an optimizer of {type(pl_module).__name__} was made before fit, of {', '.join(generated[:3])} and others of "
            f"{target!r}, which are generated now: make it in configure_optimizers, of self.parameters()"
        )
    known = {id(parameter) for parameter in trained}
    if not all(id(parameter) in known for parameter in hypernet.parameters() if parameter.requires_grad):
        warnings.warn(
            f"the optimizers of {type(pl_module).__name__} miss parameters of the Hypernet at {target!r}; build them "
            "in configure_optimizers from self.parameters()",
            stacklevel=3,
        )


def check_joined(hypernet: Hypernet, population: Population) -> bool:
    """See that the way members are joined fits the targets; whether that could be seen, or needs not to be."""
    name, _ = check_reduction(hypernet.reduce)
    if name in (None, "mean"):
        return True
    if not isinstance(population.targets, Tensor) or population.batch is None:
        return False
    with torch.no_grad():
        outputs = hypernet.executor.stacked(population.networks.some(slice(1)), population.batch.head(2))
    if isinstance(outputs, Tensor):
        refuse_regression(name, outputs[0], population.targets[:2], "reduce =")
    return True


def targets_of(batch: Any) -> Any:
    """What the inputs of a batch should map to, by their name or their place; None if it has neither."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in _TARGET_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def coordinates_of(diversity: WeightedDiversity) -> list[int | None]:
    """How many coordinates of the weights diversity losses read, if one of them says."""
    return [one.coordinates for one in diversity.losses.values() if isinstance(one, Entropy)][:1]
