"""Everything that is asked of a module that others wrote, for one pair of a LightningModule and a loader.

What is compared with is the plain module with the weights of one network, run by the module's own steps.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils import _pytree
from torch.utils.data import DataLoader

from lightning_hypernet import Ensemble, Hypernet, HypernetCallback
from lightning_hypernet.ensemble import Joined
from tests.test_callback import QUIET

MARKS = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:no gauge is fixed")]  # some can't be exported
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-4, abs=1e-5)


def mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)


@dataclass(frozen=True)
class Case:
    """A module, its data, and how it is wrapped.

    Args:
        make: Makes the LightningModule, the same one each time but for its weights.
        batches: The batches, each of which the networks divide evenly.
        inputs: What the target is called with of a batch in evaluation: arguments, or keyword arguments.
        target: As in the callback.
        options: Of the callback.
        replay: Whether steps are replayed; not where they carry a state from one to the next, or norm layers beside the target
            see the joined outputs.
        loaded: `inputs` of `from_checkpoint`, where batches do not reach the target as they are.
        seed: Of the module's weights.
    """

    make: Callable[[], pl.LightningModule]
    batches: Sequence[Any]
    inputs: Callable[[Any], tuple[Any, ...] | dict[str, Any]]
    target: str = "model"
    options: Mapping[str, Any] = field(default_factory=dict)
    replay: bool = True
    loaded: Callable[[Any], Any] | None = None
    seed: int = 0

    @property
    def loader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    def module(self) -> pl.LightningModule:
        torch.manual_seed(self.seed)
        return self.make()

    def plain(self) -> nn.Module:
        """The target as it is before it is wrapped, with other weights."""
        torch.manual_seed(99)
        return self.make() if self.target == "." else self.make().get_submodule(self.target)

    def callback(self) -> HypernetCallback:
        given = {"samples": 2, "members": 3, "execution": "loop", "generator": "compact", "diversity": {"entropy": 1e-3}}
        return HypernetCallback(target=self.target, **{**given, **self.options})

    def call(self, module: Any, batch: Any) -> Any:
        given = self.inputs(batch)
        with torch.no_grad():
            return module(**given) if isinstance(given, dict) else module(*given)


def leaves(tree: Any) -> list[Any]:
    return [one for one in _pytree.tree_leaves(tree) if isinstance(one, torch.Tensor)]


def assert_same(ours: Any, wanted: Any, **tolerance: float) -> None:
    ours, wanted = leaves(ours), leaves(wanted)
    assert wanted
    assert len(ours) == len(wanted)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, **{**TOLERANCE, **tolerance})


def of_member(outputs: Any, index: int) -> Any:
    """What one member gave, of the outputs of all; those whose shapes differ are in a list."""
    return _pytree.tree_map(lambda one: one[index] if isinstance(one, (torch.Tensor, list)) else one, outputs)


def put(module: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for path, one in modules.items():
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, one)


@contextmanager
def replaced(module: pl.LightningModule, modules: Mapping[str, nn.Module]):
    """Within, other modules stand at some paths."""
    before = {path: module.get_submodule(path) for path in modules}
    put(module, modules)
    try:
        yield
    finally:
        put(module, before)


class Replay(pl.Callback):
    """Runs every training step again with plain modules; the losses must agree. It comes before the HypernetCallback.

    Attributes:
        losses: The loss of every step.
        replayed: The mean over networks of the loss of the plain module on the network's part, and the diversity.
    """

    def __init__(self, case: Case, callback: HypernetCallback | None, check: bool = True) -> None:
        self.case, self.callback, self.check = case, callback, check
        self.losses: list[float] = []
        self.replayed: list[float] = []

    def setup(self, trainer, pl_module, stage):
        if stage == "fit":
            self.step, pl_module.training_step = pl_module.training_step, self.seen
            self.pl_module = pl_module

    def on_fit_start(self, trainer, pl_module):
        self.diversity = None
        if self.callback is not None:
            self.callback.hypernet.diversity.register_forward_hook(self.keep_diversity)

    def keep_diversity(self, module, args, values):
        self.diversity = values

    def teardown(self, trainer, pl_module, stage):
        vars(pl_module).pop("training_step", None)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.parts = []

    def seen(self, batch, batch_idx):
        torch.manual_seed(1000 * self.pl_module.global_step + len(self.parts))
        self.parts.append(batch)
        result = self.step(batch, batch_idx)
        if self.callback is not None:
            self.drawn = [self.callback.hypernet.population, *(twin.led() for twin in self.callback.twins)]
        self.batch_idx = batch_idx
        return result

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(loss.item())
        if not self.check or self.callback is None:
            return
        hypernet, rng = self.callback.hypernet, torch.get_rng_state()
        with torch.no_grad():
            dealt = self.callback.deal == "inputs"
            parts = [part for part, _ in hypernet.deal(self.parts[0])] if dealt else self.parts  # all of one size
            total = sum(self.plain(pl_module, part, index).item() for index, part in enumerate(parts)) / len(parts)
            if self.diversity is not None:
                total += hypernet.diversity.total(self.diversity).item()
        self.replayed.append(total)
        torch.set_rng_state(rng)

    def plain(self, module: Any, part: Any, index: int) -> torch.Tensor:
        """The loss of the plain module with the weights of a network, on its part."""
        if self.callback.deal != "inputs" or index == 0:
            torch.manual_seed(1000 * module.global_step + index)
        hypernets = [self.callback.hypernet, *self.callback.twins]
        plains = [
            one.executor.materialize_all(drawn.weights, {})[index].train()
            for one, drawn in zip(hypernets, self.drawn, strict=True)
        ]
        runner = plains[0] if self.case.target == "." else module
        paths = () if self.case.target == "." else (self.case.target, *(self.callback.copies or ()))
        attributes, buffers = dict(vars(runner)), [(one, dict(one._buffers)) for one in runner.modules()]
        runner.log = runner.log_dict = lambda *args, **kwargs: None
        try:
            with replaced(runner, dict(zip(paths, plains, strict=False))):
                for one, before in [(one, one._buffers) for one in runner.modules()]:
                    one._buffers.update({name: value.clone() for name, value in before.items() if value is not None})
                result = type(self.pl_module).training_step(runner, part, self.batch_idx)
        finally:
            vars(runner).clear()
            vars(runner).update(attributes)
            for one, before in buffers:
                one._buffers.update(before)
        return result["loss"] if isinstance(result, Mapping) else result


class Kept(pl.Callback):
    """What the evaluation steps return."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, *args):
        self.outputs.append(outputs)

    on_test_batch_end = on_validation_batch_end


def evaluated(case: Case, module: Any, stage: str, callback: HypernetCallback | None = None, **options: Any) -> tuple[Any, Any]:
    """What is logged, and what the steps return."""
    kept = Kept()
    trainer = pl.Trainer(**QUIET, callbacks=[kept, callback] if callback else [kept])
    torch.manual_seed(7)
    (logged, *_) = getattr(trainer, stage)(module, case.loader, verbose=False, **options) or [{}]
    return logged, kept.outputs


def fitted(case: Case, epochs: int, check: bool = False, **options: Any) -> tuple[Any, HypernetCallback, pl.Trainer, Replay]:
    module, callback = case.module(), case.callback()
    replay = Replay(case, callback, check)
    trainer = pl.Trainer(**QUIET, max_epochs=epochs, num_sanity_val_steps=0, callbacks=[replay, callback])
    torch.manual_seed(1)
    trainer.fit(module, case.loader, case.loader, **options)
    return module, callback, trainer, replay


def exercise(case: Case, folder: Path) -> Hypernet:
    """Fit, validate, test, save, resume, load, sample an ensemble, make plain modules of it; each with its right value."""
    count = len(case.batches)

    # fit: the loss of every step is the mean of the plain modules' losses on their parts
    module, callback, trainer, straight = fitted(case, 2, check=case.replay)
    assert trainer.global_step == 2 * count == len(straight.losses)
    if case.replay:
        torch.testing.assert_close(straight.losses, straight.replayed, **TOLERANCE)

    # save and resume: as if training had not stopped
    _, _, short, first = fitted(case, 1)
    path = folder / "half.ckpt"
    short.save_checkpoint(path)
    resumed, _, longer, second = fitted(case, 2, ckpt_path=path)
    assert longer.global_step == 2 * count
    torch.testing.assert_close(first.losses + second.losses, straight.losses, rtol=1e-6, atol=1e-7)
    state = module.state_dict()
    for name, value in resumed.state_dict().items():
        if isinstance(value, torch.Tensor) and "members." not in name:  # those were estimated from what this run saw
            torch.testing.assert_close(value, state[name], rtol=1e-6, atol=1e-7, msg=name)

    # validate and test: the plain members, joined, or one after another
    hypernet = callback.hypernet.eval()
    plains = [one.eval() for one in hypernet.materialize(hypernet.member_population())]
    batch = case.batches[0]
    outputs = case.call(hypernet, batch)
    separate = [case.call(one, batch) for one in plains]
    assert any(not torch.allclose(one, other) for one, other in zip(*map(leaves, separate[:2]), strict=False))
    if hypernet.reduce == "mean":
        floats = [[one for one in leaves(each) if one.is_floating_point()] for each in separate]
        means = [torch.stack(each).mean(0) for each in zip(*floats, strict=True)]
        assert_same([one for one in leaves(outputs) if one.is_floating_point()], means)
    else:
        for index, one in enumerate(separate):
            assert_same(of_member(outputs, index), one)
    for stage in ("validate", "test"):
        logged, returned = evaluated(case, module, stage, callback)
        if case.target == ".":
            continue
        if callback.validation == "ensemble":
            with replaced(module, {case.target: Joined(plains, hypernet.reduce).eval()}):
                wanted, returned_plain = evaluated(case, module, stage)
            assert logged == {name: near(value) for name, value in wanted.items()}
            if leaves(returned_plain):
                assert_same(returned, returned_plain)
        elif stage == "validate":
            each = []
            for one in plains:
                with replaced(module, {case.target: one}):
                    each.append(evaluated(case, module, stage)[0])
            assert logged == {name: near(sum(one[name] for one in each) / len(each)) for name in each[0]}
        assert logged or leaves(returned)

    # a checkpoint is loaded without the LightningModule, or tested in a fresh one
    path = folder / "whole.ckpt"
    trainer.save_checkpoint(path)
    loaded = Hypernet.from_checkpoint(path, case.plain(), name=case.target)
    assert_same(case.call(loaded, batch), outputs)
    logged, returned = evaluated(case, module, "test", callback)
    fresh, returned_fresh = evaluated(case, case.module(), "test", case.callback(), ckpt_path=path)
    assert fresh == {name: near(value) for name, value in logged.items()}
    if leaves(returned):
        assert_same(returned_fresh, returned)
    loaded = Hypernet.from_checkpoint(path, case.plain(), name=case.target, loader=case.loader, inputs=case.loaded)

    # an ensemble of new networks, and plain modules
    for one in (hypernet, loaded):
        check_ensemble(case, one.ensemble(4), batch, folder)
    return hypernet


def check_ensemble(case: Case, ensemble: Ensemble, batch: Any, folder: Path) -> None:
    """The members are the plain modules, whose state fits the target; so when the ensemble is stored."""
    assert len(ensemble) == 4
    given = case.inputs(batch)
    args, kwargs = ((), given) if isinstance(given, dict) else (given, {})
    with torch.no_grad():
        members, joined = ensemble.members(*args, **kwargs), ensemble(*args, **kwargs)
    for index, one in enumerate(ensemble.materialize()):
        assert_same(of_member(members, index), case.call(one.eval(), batch))
        plain = case.plain()
        plain.load_state_dict(one.state_dict(), strict=True)
        assert_same(case.call(plain.eval(), batch), of_member(members, index))
    assert_same(case.call(ensemble.to_module(), batch), joined)
    ensemble.save(folder / "members")
    assert_same(case.call(Ensemble.load(folder / "members", case.plain()), batch), joined)


def curves(case: Case, steps: int) -> tuple[list[float], list[float]]:
    """The losses of as many steps of the plain module and of its networks."""
    kept = []
    case = replace(case, options={"diversity": None, **case.options})
    for callback in (None, case.callback()):
        replay = Replay(case, callback, check=False)
        trainer = pl.Trainer(
            **QUIET, max_steps=steps, max_epochs=-1, limit_val_batches=0, callbacks=[replay, *([callback] if callback else [])]
        )
        torch.manual_seed(1)
        trainer.fit(case.module(), case.loader)
        kept.append(replay.losses)
    return kept[0], kept[1]
