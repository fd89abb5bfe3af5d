"""HyperparameterSearch: best responses that are known exactly."""

import itertools
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MeanSquaredError

from lightning_hypernet import HypernetCallback
from lightning_hypernet.conditions import L2, Dropout, Given, choice, log_uniform, uniform
from lightning_hypernet.search import HyperparameterSearch


class Ridge(pl.LightningModule):
    def __init__(self, steps, features=3, returns=True):
        super().__init__()
        self.model = nn.Linear(features, 1, bias=False)
        self.steps, self.returns = steps, returns

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        loss = F.mse_loss(self.model(batch[0]), batch[1])
        self.log("valid", loss)
        return loss if self.returns else None

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data(seed=0, rows=12, features=3):
    """Few training rows with much noise, and many to validate on."""
    source = torch.Generator().manual_seed(seed)
    truth = torch.randn(features, 1, generator=source)
    x, v = torch.randn(rows, features, generator=source), torch.randn(200, features, generator=source)
    y, w = ((one @ truth + 1.5 * torch.randn(len(one), 1, generator=source)) / 3 for one in (x, v))
    return x, y, v, w


def best_decay(x, y, v, w):
    """The decay on a fine grid whose ridge regression validates best, and its loss."""
    x, y, v, w = (one.double() for one in (x, y, v, w))
    grid = torch.linspace(-4, 4, 4001).double()
    eye = torch.eye(x.shape[1]).double()
    losses = [F.mse_loss(v @ torch.linalg.solve(x.T @ x / len(x) + t.exp() * eye, x.T @ y / len(x)), w) for t in grid]
    index = int(torch.stack(losses).argmin())
    return float(grid[index]), float(losses[index])


def trainer_of(steps, callbacks, **options):
    return pl.Trainer(
        max_steps=steps, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def loaders(x, y, v, w):
    return DataLoader(TensorDataset(x, y), batch_size=len(x)), DataLoader(TensorDataset(v, w), batch_size=len(v))


def searched(steps, parts, seed=0, conditions=None, module=None, fit=True, **options):
    torch.manual_seed(seed)
    conditions = conditions or {"decay": L2(log_uniform(math.exp(-4), math.exp(4)))}
    callback = HypernetCallback(
        conditions=conditions, samples=1, members=2, latent_dim=4, generator={"gain": 0.0}, execution="loop"
    )
    search = HyperparameterSearch(**{"warmup": 50, **options})
    trainer = trainer_of(steps, [callback, search], num_sanity_val_steps=0, check_val_every_n_epoch=steps)
    module = module or Ridge(steps)
    if fit:
        trainer.fit(module, *loaders(*parts))
    return module, callback, search, trainer


def test_local_search_ends_at_the_best_decay():
    parts = data(seed=3)
    decay, loss = best_decay(*parts)
    assert -3 < decay < 3
    _, callback, search, trainer = searched(400, parts)
    assert math.log(search.best["decay"]) == pytest.approx(decay, abs=0.1)
    ensemble = callback.hypernet.ensemble(2, context=search.best_context)
    assert F.mse_loss(ensemble(parts[2]), parts[3]).item() == pytest.approx(loss, rel=5e-3)
    assert torch.equal(callback.hypernet.member_context, search.best_context.expand(2, -1))
    assert trainer.callback_metrics["valid"].item() == pytest.approx(loss, rel=5e-3)
    assert search.path[0].step == 51 and search.path[-1].step == 400
    assert trainer.logged_metrics["hypernet/decay"] > 0 and "hypernet/validation_loss" in trainer.logged_metrics


@pytest.mark.slow
def test_global_search_knows_the_whole_curve():
    parts = data(seed=3)
    x, y, v, w = (one.double() for one in parts)
    _, _, search, trainer = searched(3000, parts, mode="global")
    decay, _ = best_decay(*parts)
    decays, losses = search.curve(trainer, "decay", points=9)
    eye = torch.eye(3).double()
    exact = [F.mse_loss(v @ torch.linalg.solve(x.T @ x / len(x) + one * eye, x.T @ y / len(x)), w).item() for one in decays]
    assert losses == pytest.approx(exact, rel=0.03)
    assert math.log(search.best["decay"]) == pytest.approx(decay, abs=0.4)


def test_a_choice_is_found_through_what_training_step_reads():
    """The better of two training targets; the other is the wrong sign."""

    class Signs(Ridge):
        def training_step(self, batch, batch_idx):
            values = self.model.hyperparameters()["sign"]
            out = self.model(batch[0])
            return F.mse_loss(out, batch[1] * (2.0 * self.model.of_examples(values)[:, None] - 1))

    parts = data(seed=2)
    _, _, search, _ = searched(
        200, parts, conditions={"sign": Given(choice("minus", "plus"))}, module=Signs(200), lr=0.05, start={"sign": "minus"}
    )
    assert search.best == {"sign": "plus"}


class Keeps(pl.Callback):
    """Writes a checkpoint after some steps."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_search_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    parts = data(seed=3)
    module, _, search, trainer = searched(120, parts, fit=False)
    trainer.callbacks.append(Keeps(tmp_path / "part.ckpt", 80))
    trainer.fit(module, *loaders(*parts))
    again, _, resumed, second = searched(120, parts, seed=5, fit=False)
    second.fit(again, *loaders(*parts), ckpt_path=tmp_path / "part.ckpt")
    assert resumed.path == search.path and [one.step for one in resumed.path] == list(range(51, 121))
    assert resumed.best == search.best
    pairs = zip(module.model.generator.state_dict().values(), again.model.generator.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("options", "module", "told"),
    [
        ({}, Ridge(60, returns=False), "validation_step returns nothing: return the loss there"),
        ({"objective": lambda module, batch: batch[1].mean()}, Ridge(60), "has no gradient"),
    ],
)
def test_a_validation_loss_that_is_none_is_told(options, module, told):
    with pytest.raises((TypeError, ValueError), match=told):
        searched(60, data(), module=module, **options)


@pytest.mark.parametrize("objective", ["training_step", lambda module, batch: F.l1_loss(module.model(batch[0]), batch[1])])
def test_other_objectives_are_followed(objective):
    _, _, search, _ = searched(60, data(), objective=objective)
    assert len(search.path) == 10 and search.path[0].values != search.path[-1].values


def test_a_search_stands_behind_its_callback():
    search = HyperparameterSearch()
    callback = HypernetCallback(conditions={"decay": L2(log_uniform(1e-3, 1))}, samples=1)
    another = HypernetCallback("other", conditions={"decay": L2(log_uniform(1e-3, 1))})
    for callbacks in ([search, callback], [search], [HypernetCallback(), search], [callback, another, search]):
        module = Ridge(1)
        module.other = nn.Linear(3, 1)
        with pytest.raises(ValueError, match="stands in the list of callbacks behind one"):
            trainer_of(1, callbacks).fit(module, *loaders(*data()))


def test_without_validation_data_there_is_nothing_to_follow():
    callback = HypernetCallback(conditions={"decay": L2(log_uniform(1e-3, 1))}, samples=1)
    trainer = trainer_of(5, [callback, HyperparameterSearch(warmup=0)])
    with pytest.raises(ValueError, match="needs validation data"):
        trainer.fit(Ridge(5), loaders(*data())[0])


def test_the_start_is_a_value_of_its_range():
    starts = [({"decya": 1}, "no condition 'decya'"), ({"decay": 1e9}, "must lie in"), (3, "must be a mapping")]
    for start, told in starts:
        with pytest.raises(ValueError, match=told):
            searched(1, data(), start=start)


def test_networks_of_a_search_drop_nothing_and_leave_no_trace():
    class Dropping(Ridge):
        def __init__(self):
            super().__init__(60)
            self.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
            self.seen = []

        def validation_step(self, batch, batch_idx):
            if self.model.training:
                self.seen.append((self.training, torch.equal(self.model(batch[0]), self.model(batch[0]))))
                self.model.target[2].p = self.model.target[2].p
            return super().validation_step(batch, batch_idx)

    module = Dropping()
    _, callback, search, _ = searched(52, data(), module=module, conditions={"rate": Dropout(uniform(0, 0.9))})
    assert module.seen == [(False, True)] * 2 and module.training
    assert len(search.path) == 2
    assert {one.batch for one in callback.hypernet.members.recent.on(torch.device("cpu"))} == {12}


def test_the_path_is_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    _, _, search, _ = searched(60, data())
    figure = search.plot("decay")
    assert [axes.get_ylabel() for axes in figure.axes] == ["decay", "validation loss"]


class Watching(Ridge):
    """Metrics, a look at what is transferred, and a step that is told which loader and batch it sees."""

    def __init__(self, steps):
        super().__init__(steps)
        self.metric, self.numbers, self.stages = MeanSquaredError(), [], []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.stages.append((self.trainer.training, len(batch[0])))
        return batch

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.numbers.append((batch_idx, dataloader_idx, len(batch[0])))
        self.metric.update(self.model(batch[0]), batch[1])
        return F.mse_loss(self.model(batch[0]), batch[1])


def test_a_search_step_is_validation_that_leaves_metrics_alone():
    x, y, v, w = data(seed=3)
    torch.manual_seed(0)
    callback = HypernetCallback(conditions={"decay": L2(log_uniform(1e-3, 1))}, samples=2, members=2)
    trainer = trainer_of(6, [callback, HyperparameterSearch(warmup=0)], num_sanity_val_steps=0, check_val_every_n_epoch=100)
    several = [DataLoader(TensorDataset(v[:count], w[:count]), batch_size=8) for count in (16, 4)]
    module = Watching(6)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=12), several)
    assert module.numbers == [(0, 0, 8), (1, 0, 8), (0, 1, 4)] * 2
    assert module.stages == [pair for size in (8, 8, 4) * 2 for pair in ((True, 12), (False, size))]
    assert module.metric._update_count == 0 and module.metric.total == 0


def test_a_search_of_another_module_begins_anew():
    parts = data()
    _, callback, search, _ = searched(60, parts)
    assert len(search.path) == 10
    trainer = trainer_of(60, [callback, search], num_sanity_val_steps=0, check_val_every_n_epoch=60)
    trainer.fit(Ridge(60), *loaders(*parts))
    assert [one.step for one in search.path] == list(range(51, 61))
    with pytest.raises(ValueError, match="no condition 'nope' to plot"):
        search.plot("nope")


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_search_runs_in_other_precisions(precision):
    callback = HypernetCallback(conditions={"decay": L2(log_uniform(1e-3, 1))}, samples=2, members=2)
    search = HyperparameterSearch(warmup=0)
    trainer_of(3, [callback, search], precision=precision, num_sanity_val_steps=0).fit(Ridge(3), *loaders(*data()))
    assert len(search.path) == 3


def test_a_validation_loader_without_end_is_read_as_far_as_it_is_validated_on():
    class Endless(IterableDataset):
        def __iter__(self):
            return (pair for _ in itertools.count() for pair in zip(*data()[2:], strict=True))

    callback = HypernetCallback(conditions={"decay": L2(log_uniform(1e-3, 1))}, samples=2, members=2)
    search = HyperparameterSearch(warmup=0)
    trainer = trainer_of(5, [callback, search], limit_val_batches=2, num_sanity_val_steps=0, check_val_every_n_epoch=100)
    trainer.fit(Ridge(5), loaders(*data())[0], DataLoader(Endless(), batch_size=8))
    assert len(search.path) == 5
    assert len(search.curve(trainer, "decay", points=2)[1]) == 2
