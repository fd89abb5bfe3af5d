import copy
import os
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback, hookimpl
from lightning_hypernet.generator import Latents
from tests.test_callback import QUIET

STEPS = 8
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
}


class Classifier(pl.LightningModule):
    """Its losses are kept, and its target has a norm layer."""

    def __init__(self, optimizer="adamw"):
        super().__init__()
        torch.default_generator.manual_seed(1)
        self.optimizer, self.losses, self.networks = optimizer, [], []
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        if isinstance(self.model, Hypernet):
            self.networks.append(len(self.model.population))
        return loss

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


def loader():
    x = torch.randn(24, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()), 12)


def train(module, callbacks=(), steps=STEPS, path=None, **options):
    trainer = pl.Trainer(**{**QUIET, **options}, max_steps=steps, callbacks=list(callbacks))
    trainer.fit(module, loader(), ckpt_path=path)
    return trainer


def callback_of(branch=0.5, **options):
    given = {"components": 3, "samples": 3, "members": 3, "latent_dim": 4, "execution": "loop", **options}
    return HypernetCallback(branch=branch, **given)


@pytest.mark.parametrize("start", ["mean_weights", "pretrained"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_until_it_branches_the_plain_network_is_trained(optimizer, start):
    plain, ours = Classifier(optimizer), Classifier(optimizer)
    train(plain)
    callback = callback_of(generator={"start": start}, diversity="entropy")
    with pytest.warns(
        UserWarning, match=r"training ended before components branched, .*branch=1\.0 .* step 8: all networks are"
    ):
        train(ours, [callback_of(1.0, generator={"start": start}, diversity="entropy")])
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(plain.losses), atol=1e-12, rtol=0)
    assert ours.networks == [1] * STEPS
    for member in ours.model.materialize(ours.model.sample(2)):
        for name, value in plain.model.named_parameters():
            torch.testing.assert_close(member.get_parameter(name), value, atol=1e-12, rtol=0)
    train(again := Classifier(optimizer), [callback])
    assert again.networks == [1] * 4 + [3] * 4
    assert again.losses[:4] == ours.losses[:4]


class Before(pl.Callback):
    """Keeps the weights of a network and the optimizer's state as they are before a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.trunk = {name: value[0].detach().clone() for name, value in pl_module.model.sample(1).weights.items()}
            self.state = [copy.deepcopy(value) for value in trainer.optimizers[0].state.values()]


class AtBranch(pl.Callback):
    """Keeps the networks of every component and the mean weights' share of the optimizer's state after it branched."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == STEPS // 2:
            hypernet = pl_module.model
            means = [generate.means for generate in hypernet.generator.weight_generators]
            self.moments = [copy.deepcopy(trainer.optimizers[0].state[one]) for one in means]
            latents = hypernet.members.latents
            training = hypernet.generator.training
            hypernet.generator.eval()
            of = [Latents(latents.z, torch.full_like(latents.component, component)) for component in range(3)]
            with torch.no_grad():
                self.networks = [hypernet.decode(one).weights for one in of]
            hypernet.generator.train(training)


def test_every_component_starts_from_the_trunk_with_its_optimizer_state():
    before, after = Before(STEPS // 2), AtBranch()
    callback = callback_of()
    train(Classifier(), [before, callback, after])
    for weights in after.networks:
        for name, value in before.trunk.items():
            torch.testing.assert_close(weights[name].mean(0), value, atol=1e-10, rtol=0)
            assert 0 < weights[name].std(0).max() < 0.3 * value.abs().max()
    for moments in after.moments:
        assert moments["step"] == STEPS // 2
        for name in ("exp_avg", "exp_avg_sq"):
            assert any(torch.equal(moments[name][0], state[name][0]) for state in before.state)
            assert all(torch.equal(moments[name][k], moments[name][0]) for k in (1, 2))


def test_components_part_afterwards():
    module = Classifier()
    train(module, [callback_of(0.25)])
    weights = module.model.eval().sample(3).weights["0.weight"]
    assert (weights[0] - weights[1]).abs().max() > 1e-3


@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(stop, tmp_path):
    whole = Classifier()
    train(whole, [callback_of()])

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")

    train(Classifier(), [callback_of(), Stop()])
    assert (tmp_path / "checkpoint.ckpt").exists()
    resumed = Classifier()
    train(resumed, [callback_of()], path=tmp_path / "checkpoint.ckpt")
    assert resumed.losses == whole.losses[stop:]
    assert resumed.networks == whole.networks[stop:]


def test_a_checkpoint_of_the_trunk_is_the_trunk(tmp_path):
    module = Classifier()
    with pytest.warns(UserWarning, match="all networks are one"):
        trainer = train(module, [callback_of(1.0)])
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    loaded = Hypernet.from_checkpoint(tmp_path / "checkpoint.ckpt", Classifier().model).eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), module.model.eval()(x), atol=0, rtol=0)
    first, second = loaded.sample(2).weights["0.weight"]
    assert torch.equal(first, second)


@pytest.mark.parametrize("deal", ["inputs", "batch"])
def test_both_ways_to_deal_out(deal):
    module = Classifier()
    callback = callback_of(deal=deal)
    train(module, [callback])
    assert len(module.losses) == (STEPS if deal == "inputs" else 4 + 4 * 3)
    assert not callback.hypernet.generator.trunk


def test_diversity_waits_for_networks_to_differ():
    logged = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            logged.append("hypernet/entropy" in trainer.callback_metrics)

    train(Classifier(), [callback_of(diversity={"entropy": 1e-3}), Watch()])
    assert logged == [False] * 4 + [True] * 4


def test_a_preset_may_branch():
    class Plugin:
        @hookimpl
        def hypernet_register_presets(self, register):
            register("late", {"branch": 0.5, "components": 2})

    module, plain = Classifier(), Classifier()
    train(module, [HypernetCallback(preset="late", plugins=[Plugin()], samples=2)])
    train(plain, [HypernetCallback(preset="late", plugins=[Plugin()], samples=2, branch=0)])
    assert module.networks == [1] * 4 + [2] * 4
    assert plain.networks == [2] * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branch": 1.5}, "branch must lie in 0 to 1, not 1.5"),
        ({"branch": "late"}, "branch must lie in 0 to 1, not 'late'"),
        ({"generator": "compact"}, r"branch=0\.5 .* a generator with start='mean_code' can't have: leave it out"),
        ({"generator": "adapter"}, "start='adapter'"),
        ({"distribution": {"name": "mean_field"}, "components": 1, "latent_dim": None}, "distribution='mean_field'"),
        ({"conditions": {"decay": {"name": "l2", "range": {"log_uniform": [1e-4, 1]}}}}, "conditions="),
        ({"context": lambda batch: torch.zeros(1), "context_dim": 1}, "context="),
    ],
)
def test_what_can_not_train_alone_is_told_when_it_is_asked_for(options, message):
    with pytest.raises(ValueError, match=message):
        callback_of(**{"branch": 0.5, **options})


def test_a_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"branch=0\.5 is a share of all steps, and there is no end: set max_epochs or"):
        train(Classifier(), [callback_of()], steps=-1, max_epochs=-1)


def test_manual_optimization_is_refused():
    class Manual(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match=r"branch=0\.5 counts the trainer's own steps: leave it out under manual optimization"):
        train(Manual(), [callback_of()])


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True, "static_graph": True}], ids=str)
def test_a_strategy_that_wants_all_parameters_used_is_refused(options):
    callback = callback_of()
    message = r"branch=0\.5 leaves parameters unused at first: set strategy='ddp_find_unused_parameters_true', or leave out"
    with mock.patch.dict(os.environ):  # where a launcher leaves its port
        try:
            with pytest.raises(ValueError, match=message):
                train(Classifier(), [callback], strategy=DDPStrategy(**options), devices=1)
        finally:
            torch.distributed.destroy_process_group()


def test_a_hypernet_that_is_there_is_at_its_place_in_training():
    module = Classifier()
    train(module, [callback_of(0)])
    with pytest.raises(
        ValueError, match=r"branch=0\.5 begins with a plain target, and a Hypernet is there whose networks differ"
    ):
        train(module, [callback_of(0.5)])
    trunk, callback = Classifier(), callback_of(1.0)
    with pytest.warns(UserWarning, match="all networks are one"):
        train(trunk, [callback])
    with pytest.raises(ValueError, match="is one network, whose components have not branched yet: set branch"):
        train(trunk, [callback_of(0)])
    train(trunk, [callback_of(0.25)])
    assert not trunk.model.generator.trunk


class Pair(pl.LightningModule):
    """Two targets that are made alike and see other inputs."""

    def __init__(self):
        super().__init__()
        torch.default_generator.manual_seed(1)
        one = lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()  # noqa: E731
        self.a, self.b, self.networks = one(), one(), []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.a(x), y) + F.cross_entropy(self.b(10 + 5 * x), y)
        self.networks.append((len(self.a.population), len(self.b.population)))
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def pair_of(*shares):
    options = {"components": 2, "samples": 2, "members": 2, "latent_dim": 4, "execution": "loop"}
    return [HypernetCallback(target, branch=share, **options) for target, share in zip("ab", shares, strict=True)]


def test_targets_that_are_made_alike_branch_each_at_its_own_time():
    module = Pair()
    train(module, pair_of(0.25, 0.75))
    assert module.networks == [(1, 1)] * 2 + [(2, 1)] * 4 + [(2, 2)] * 2


def test_a_checkpoint_leaves_the_statistics_of_a_target_made_alike_alone(tmp_path):
    module = Pair()
    trainer = train(module, pair_of(0, 0))
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    means = {
        name: value.clone() for name, value in module.b.members.statistics.tensors().items() if name.endswith("running_mean")
    }
    module.b.eval()
    found = []
    for inputs in (lambda batch: (10 + 5 * batch[0],), lambda batch: (batch[0],)):
        module.b.update_statistics(loader(), inputs=inputs)
        found.append({name: module.b.members.statistics.tensors()[name].clone() for name in means})
    for name, value in means.items():
        own, others = ((value - one[name]).abs().mean() for one in found)
        assert own < 0.1 * others


def test_a_state_of_a_trunk_does_not_fit_a_generator_without_mean_weights():
    hypernet = Hypernet(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), generator="compact")
    state = hypernet.state_dict()
    state["_extra_state"]["trunk"] = True
    with pytest.raises(ValueError, match="one network can train alone where there are mean weights"):
        hypernet.load_state_dict(state)
    field = Hypernet(nn.Linear(4, 2), distribution="mean_field")
    with pytest.raises(ValueError, match="mean weights, which a MeanField.* has not"):
        field.generator.grow_trunk()
