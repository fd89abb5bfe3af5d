"""HyperparameterSearch: best responses that are known exactly."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

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
    y, w = (one @ truth + 1.5 * torch.randn(len(one), 1, generator=source) for one in (x, v))
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
    parts = data()
    decay, loss = best_decay(*parts)
    assert -3 < decay < 3
    module, callback, search, trainer = searched(500, parts, lr=0.02)
    assert math.log(search.best["decay"]) == pytest.approx(decay, abs=0.1)
    ensemble = callback.hypernet.ensemble(2, context=search.best_context)
    assert F.mse_loss(ensemble(parts[2]), parts[3]).item() == pytest.approx(loss, rel=2e-3)
    assert torch.equal(callback.hypernet.member_context, search.best_context.expand(2, -1))
    assert trainer.callback_metrics["valid"].item() == pytest.approx(loss, rel=2e-3)
    assert search.path[0].step == 51 and search.path[-1].step == 500
    assert trainer.logged_metrics["hypernet/decay"] > 0 and "hypernet/validation_loss" in trainer.logged_metrics


@pytest.mark.slow
def test_global_search_knows_the_whole_curve():
    parts = data()
    x, y, v, w = (one.double() for one in parts)
    module, callback, search, trainer = searched(3000, parts, mode="global", lr=0.02)
    decay, loss = best_decay(*parts)
    decays, losses = search.curve(trainer, "decay", points=9)
    eye = torch.eye(3).double()
    exact = [F.mse_loss(v @ torch.linalg.solve(x.T @ x / len(x) + one * eye, x.T @ y / len(x)), w).item() for one in decays]
    assert losses == pytest.approx(exact, rel=0.03)
    assert math.log(search.best["decay"]) == pytest.approx(decay, abs=0.4)


def test_a_choice_is_found_through_what_training_step_reads():
    """The better of two training targets; the other is the wrong sign."""

    class Signs(Ridge):
        def training_step(self, batch, batch_idx):
            values = self.model.hyperparameters["sign"]
            out = self.model(batch[0])
            return F.mse_loss(out, batch[1] * (2.0 * self.model.of_examples(values)[:, None] - 1))

    parts = data(seed=2)
    _, _, search, _ = searched(
        400, parts, conditions={"sign": Given(choice("minus", "plus"))}, module=Signs(400), lr=0.05, start={"sign": "minus"}
    )
    assert search.best == {"sign": "plus"}


def test_a_search_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    parts = data(seed=1)
    module, callback, search, trainer = searched(120, parts)
    half, _, _, first = searched(80, parts, module=Ridge(120))
    first.save_checkpoint(tmp_path / "half.ckpt")
    again, _, resumed, second = searched(120, parts, seed=5, fit=False)
    second.fit(again, *loaders(*parts), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert [one.step for one in resumed.path] == list(range(51, 121))
    assert resumed.path[:20] == search.path[:20] or len(search.path) == 70
    state = [value for name, value in module.model.generator.state_dict().items()]
    other = [value for name, value in again.model.generator.state_dict().items()]
    assert second.global_step == trainer.global_step == 120 and len(state) == len(other)
    assert callback.hypernet.conditions.draws == again.model.conditions.draws


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
    for callbacks in ([search, callback], [search], [HypernetCallback(), search], [callback, HypernetCallback("x"), search]):
        with pytest.raises(ValueError, match="stands in the list of callbacks behind one"):
            trainer_of(1, callbacks).fit(Ridge(1), *loaders(*data()))


def test_without_validation_data_there_is_nothing_to_follow():
    callback = HypernetCallback(conditions={"decay": L2(log_uniform(1e-3, 1))}, samples=1)
    trainer = trainer_of(5, [callback, HyperparameterSearch(warmup=0)])
    with pytest.raises(ValueError, match="needs validation data"):
        trainer.fit(Ridge(5), loaders(*data())[0])


def test_the_start_is_a_value_of_its_range():
    for start, told in [({"decya": 1}, "no condition 'decya'"), ({"decay": 1e9}, "must lie in")]:
        with pytest.raises(ValueError, match=told):
            searched(1, data(), start=start)


def test_networks_of_a_search_drop_nothing_and_leave_no_trace():
    class Dropping(Ridge):
        def __init__(self):
            super().__init__(60)
            self.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
            self.seen = []

        def validation_step(self, batch, batch_idx):
            if self.trainer.training:
                self.seen.append((self.training, torch.equal(self.model(batch[0]), self.model(batch[0]))))
                self.model.target[2].p = self.model.target[2].p
            return super().validation_step(batch, batch_idx)

    module = Dropping()
    _, callback, search, _ = searched(52, data(), module=module, conditions={"rate": Dropout(uniform(0, 0.9))})
    assert module.seen == [(False, True)] * 2 and module.training
    assert len(search.path) == 2
    assert {len(one.tensors[0]) for one in callback.hypernet.members.recent.calls} == {12}


def test_the_path_is_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    _, _, search, _ = searched(60, data())
    figure = search.plot("decay")
    assert [axes.get_ylabel() for axes in figure.axes] == ["decay", "validation loss"]
