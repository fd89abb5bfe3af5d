"""What happens around a Hypernet in Lightning, in both class trees."""

import math
import os
import subprocess
import sys
import warnings

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.callbacks import LearningRateFinder, StochasticWeightAveraging
from pytorch_lightning.tuner import Tuner
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.diversity import Entropy
from tests.test_callback import QUIET, Classifier, Scored, data, fit

TREES = pytest.mark.parametrize("tree", [pl, lp])


def module_of(tree, **hooks):
    """A LightningModule of one of the class trees, without a model of its own."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    made = {"training_step": training_step, "configure_optimizers": configure_optimizers, **hooks}
    return type("Made", (tree.LightningModule,), made)()


def build(self, *_):
    if not hasattr(self, "model"):
        self.model = nn.Linear(4, 3)


@TREES
@pytest.mark.parametrize("hook", ["configure_model", "setup"])
def test_a_model_that_a_hook_builds(tree, hook):
    module = module_of(tree, **{hook: build})
    callback = HypernetCallback(samples=2)
    tree.Trainer(**QUIET, max_steps=2, callbacks=[callback]).fit(module, data())
    assert module.model is callback.hypernet
    assert "setup" not in vars(module)


@TREES
@pytest.mark.parametrize("hook", ["configure_model", "setup", "on_fit_start"])
def test_a_target_that_is_not_there(tree, hook):
    module = module_of(tree, **{hook: build})
    with pytest.raises(ValueError, match="Made has no module 'modle'; set target to one of"):
        tree.Trainer(**QUIET, max_steps=2, callbacks=[HypernetCallback(target="modle")]).fit(module, data())


def test_validation_that_calls_the_training_step():
    class Both(Classifier):
        def validation_step(self, batch, batch_idx):
            self.seen["val"].append(self.training_step(batch, batch_idx))

    module = Both()
    fit(module, callback=HypernetCallback(samples=2, diversity="entropy"))
    hypernet = module.model.eval()
    x, y = next(iter(data()))
    with torch.no_grad():
        assert torch.allclose(module.seen["val"][-4], F.cross_entropy(hypernet(x), y), atol=1e-5)


class Whole(pl.LightningModule):
    """Its forward reads whatever may be set on it."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.tau, self._private, self.history = 1.0, 0, []
        self.register_buffer("shift", torch.zeros(3))
        self.seen = []

    def state(self):
        own = (self.tau, self._private, len(self.history), self.drop.p, self.shift.sum().item(), self.norm.training)
        return (*own, self.current_epoch)

    def forward(self, x):
        SEEN.append(Whole.state(self))
        return self.last(self.drop(self.norm(self.first(x)).relu())) / self.tau + self.shift

    def training_step(self, batch, batch_idx):
        self.tau, self._private, self.drop.p = 1.0 + batch_idx, self._private + 1, 0.1 * batch_idx
        self.history.append(batch_idx)
        self.norm.eval() if batch_idx == 2 else self.norm.train()
        if batch_idx % 2:
            self.shift.fill_(batch_idx)
        else:
            self.shift = torch.full((3,), float(batch_idx))
        loss = F.cross_entropy(self(batch[0]), batch[1])
        assert SEEN[-1] == self.state()
        return loss

    def validation_step(self, batch, batch_idx):
        self.tau = 7.0 + batch_idx
        self(batch[0])
        assert SEEN[-1] == self.state()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


SEEN = []


def test_the_whole_module_is_one(tmp_path):
    """Attributes, private ones too, lists, buffers, modes and submodules' attributes: forward sees them as they are."""
    SEEN.clear()
    module = Whole()
    callback = HypernetCallback(target=".", samples=2, members=2, execution="loop", gauge="none")
    trainer = pl.Trainer(**QUIET, max_epochs=2, callbacks=[callback])
    trainer.fit(module, data(), data())
    assert {state[-1] for state in SEEN} == {0, 1}
    assert len({state[4] for state in SEEN}) == 4
    assert {state[5] for state in SEEN} == {True, False}
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = Whole()
    again = HypernetCallback(target=".", samples=2, members=2, execution="loop", gauge="none")
    pl.Trainer(**QUIET, max_epochs=3, callbacks=[again]).fit(resumed, data(), data(), ckpt_path=tmp_path / "one.ckpt")
    module.double().eval()
    module.shift = torch.ones(3, dtype=torch.float64) * 100
    assert module(torch.randn(5, 4, dtype=torch.float64)).mean() > 50


class Twice(Classifier):
    def __init__(self):
        super().__init__(norm=False)
        self.other = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]) + self.other(batch[0]), batch[1])


def test_two_callbacks_on_two_targets():
    module = Twice()
    callbacks = [HypernetCallback(target=name, samples=2, diversity="entropy") for name in ("model", "other")]
    step = type(module).training_step
    trainer = pl.Trainer(**QUIET, max_steps=2, log_every_n_steps=1, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(module, data())
    kinds = ("entropy", "member_distance")
    assert set(trainer.callback_metrics) == {f"hypernet/{name}/{kind}" for name in ("model", "other") for kind in kinds}
    assert "training_step" not in vars(module)
    assert type(module).training_step is step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 5}, "members=3, not 5"),
        ({"components": 2}, "components=1, not 2"),
        ({"latent_dim": 8}, "latent_dim=64, not 8"),
        ({"prior": "mixture"}, "prior='normal', not 'mixture'"),
        ({"generator": {"code_size": 4}}, "generator.code_size=None, not 4"),
        ({"diversity": "mutual_information"}, "diversity losses of entropy, not of mutual_information"),
        ({"diversity": None}, "diversity losses of entropy, not without any"),
    ],
)
def test_a_resume_with_other_options(tmp_path, options, message):
    given = {"samples": 2, "members": 3, "diversity": "entropy"}
    _, trainer = fit(Classifier(), callback=HypernetCallback(**given), max_epochs=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    trainer = pl.Trainer(**QUIET, max_epochs=2, callbacks=[HypernetCallback(**{**given, **options})])
    with pytest.raises(ValueError, match=f"the state of model was written with {message}"):
        trainer.fit(Classifier(), data(), ckpt_path=tmp_path / "one.ckpt")


def test_a_resume_with_options_that_fit_all_the_same(tmp_path):
    _, trainer = fit(Classifier(), callback=HypernetCallback(samples=2), max_epochs=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    other = HypernetCallback(samples=4, reduce="majority")
    trainer = pl.Trainer(**QUIET, max_epochs=2, callbacks=[other])
    with pytest.warns(UserWarning, match="written with samples=2, not 4; reduce='mean', not 'majority'"):
        trainer.fit(Classifier(), data(), data(), ckpt_path=tmp_path / "one.ckpt")
    assert (other.hypernet.samples, other.hypernet.reduce) == (4, "majority")


@pytest.mark.parametrize("how", ["tuner", "before", "behind"])
def test_the_learning_rate_finder_probes_with_the_diversity(how, monkeypatch, tmp_path):
    calls, forward = [], Entropy.forward
    monkeypatch.setattr(Entropy, "forward", lambda self, population: calls.append(1) or forward(self, population))
    monkeypatch.chdir(tmp_path)
    module, callback = Classifier(), HypernetCallback(samples=2, diversity="entropy")
    finder = LearningRateFinder(num_training_steps=8)
    callbacks = {"tuner": [callback], "before": [finder, callback], "behind": [callback, finder]}[how]
    trainer = pl.Trainer(**QUIET, max_steps=3, callbacks=callbacks, limit_val_batches=0)
    if how == "tuner":
        Tuner(trainer).lr_find(module, data(), num_training=8)
        assert len(calls) == 8
    trainer.fit(module, data())
    assert len(calls) == 11
    assert all(math.isfinite(loss) for loss in module.losses)


class Broken(Classifier):
    def __init__(self, factor):
        super().__init__(norm=False)
        self.factor = factor

    def training_step(self, batch, batch_idx):
        inputs = batch["inputs"] if isinstance(batch, dict) else batch[0]
        return F.cross_entropy(self.model(inputs), batch["labels"] if isinstance(batch, dict) else batch[1]) * self.factor


class Rows(torch.utils.data.Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "labels": 0}


def test_losses_that_are_not_finite():
    with pytest.raises(ValueError, match="the loss that training_step returns is infinite; lower the learning rate"):
        fit(Broken(math.inf), limit_val_batches=0)
    with pytest.raises(ValueError, match="the loss that training_step returns is NaN; lower the learning rate"):
        fit(Broken(math.nan), limit_val_batches=0)
    inputs = torch.randn(16, 4)
    for value, word in ((math.nan, "NaN"), (-math.inf, "infinite numbers")):
        inputs[11, 2] = value
        with pytest.raises(ValueError, match=rf"returns is NaN; the batch holds {word} at batch\['inputs'\]"):
            fit(Broken(1.0), loader=DataLoader(Rows(inputs), 8), limit_val_batches=0)
        inputs[11, 2] = 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0}, {"samples": "eight"}, {"samples": 2.5}, {"members": -1}, {"latent_dim": 0}, {"components": True},
        {"context_dim": -1}, {"reduce": "average"}, {"prior": "gaussian"}, {"prior": {"name": "uniform", "low": 1}},
        {"generator": "small"}, {"generator": {"hiden": 3}}, {"generator": {"extractor": "cnn"}}, {"gauge": "norm"},
        {"execution": "jit"}, {"distribution": "flows"}, {"deal": "data"}, {"validation": "all"}, {"batch_dim": -1},
        {"batch_dim": "first"}, {"diversity": "entropie"}, {"preset": "best"}, {"member": 3}, {"latent_dim": 8, "prior": 3},
    ],
)  # fmt: skip
def test_options_are_checked_when_the_callback_is_made(options):
    with pytest.raises((ValueError, TypeError)) as caught:
        HypernetCallback(**options)
    (*_, (name, value)) = options.items()
    wrong = [name, *map(str, value.values()), *value] if isinstance(value, dict) else [name, str(value)]
    assert any(one in str(caught.value) for one in wrong)
    assert "not supported between" not in str(caught.value)


ema = pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="this Lightning has no average of its own")


@pytest.mark.parametrize(
    "average", [pytest.param(lambda: callbacks.EMAWeightAveraging(), marks=ema), lambda: StochasticWeightAveraging(1e-2)]
)
def test_averages_of_weights_come_behind(average):
    trainer = pl.Trainer(**QUIET, max_steps=1, callbacks=[average(), HypernetCallback(samples=2)])
    with pytest.raises(ValueError, match="WeightAveraging copies the module before the Hypernet stands in it; list"):
        trainer.fit(Classifier(), data())


@pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning")
def test_stochastic_weight_averaging_behind_the_callback():
    """After its epochs the Hypernet has the averaged weights, and at the end statistics estimated for those it has."""
    pl.seed_everything(0, verbose=False)
    module, rows = Scored(), []

    class Keep(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rows.append([one.detach().clone() for one in pl_module.model.generator.parameters()])

    callback = HypernetCallback(samples=4, members=3, execution="loop")
    averaging = StochasticWeightAveraging(1e-2, swa_epoch_start=2, annealing_epochs=1)
    trainer = pl.Trainer(**QUIET, max_epochs=5, num_sanity_val_steps=0, callbacks=[callback, averaging, Keep()])
    trainer.fit(module, data())
    mean = [torch.stack(values).mean(0) for values in zip(*rows[1:5], strict=True)]
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(rows[5], mean, strict=True))
    hypernet, x = module.model.eval(), next(iter(data()))[0]
    outputs = hypernet(x)
    hypernet.update_statistics()
    assert torch.allclose(hypernet(x), outputs, atol=1e-6)


def test_no_property_raises_but_as_one_that_is_not_there():
    """As torch.jit and debuggers ask for all of them."""
    for target in (nn.Sequential(nn.Linear(4, 3)), nn.LSTM(4, 3, batch_first=True)):
        hypernet = Hypernet(target, samples=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for thing in (hypernet, hypernet.ensemble(2), hypernet.sample(2).networks, HypernetCallback()):
                for name in dir(thing):
                    if thing.__class__ is not HypernetCallback or name != "hypernet":
                        hasattr(thing, name)


def test_steps_within_steps():
    hypernet = Hypernet(nn.Linear(4, 3), samples=2).train()
    x = torch.randn(4, 4)
    with hypernet.step():
        one = hypernet(x)
        with hypernet.step():
            assert torch.equal(hypernet(x), one)
        assert torch.equal(hypernet(x), one)
    assert hypernet.population is None
    assert not torch.equal(hypernet(x), one)


@pytest.mark.slow
def test_values_are_synchronized_at_the_end_of_an_epoch(tmp_path):
    """Two processes draw other networks and log their mean."""
    (tmp_path / "main.py").write_text(
        """
import sys, torch, pytorch_lightning as pl
from lightning_hypernet import HypernetCallback
from tests.test_callback import Classifier, data
pl.seed_everything(0, verbose=False)
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False,
                     callbacks=[HypernetCallback(samples=4, diversity={"entropy": 1e-3})])
trainer.fit(Classifier(), data(), data())
value = trainer.callback_metrics["hypernet/entropy"]
both = [torch.zeros_like(value) for _ in range(2)]
torch.distributed.all_gather(both, value)
assert torch.equal(*both), both
statistics = trainer.lightning_module.model.members.statistics.tensors()["1.running_mean"]
both = [torch.zeros_like(statistics) for _ in range(2)]
torch.distributed.all_gather(both, statistics)
assert torch.equal(*both)
"""
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Settings:
    """A class that no file may import."""

    made = 0

    def __init__(self):
        self.values = [1, {"a": {2}}]

    def __setstate__(self, state):
        Settings.made += 1


class Versioned(nn.Linear):
    """It asks for the version of its state, as torch's own modules do."""

    _version = 7
    seen = None

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        Versioned.seen = local_metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.filterwarnings("ignore:.*are no averages over batches")
def test_of_a_checkpoint_the_hypernets_part_alone_is_read(tmp_path):
    """Whatever the hyperparameters hold; with the versions of state dicts."""

    class Hyper(Classifier):
        def __init__(self, settings=None, function=None):
            super().__init__()
            self.save_hyperparameters()
            self.model = nn.Sequential(nn.Linear(4, 8), nn.utils.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 3))

    module = Hyper(Settings(), os.path.join)
    _, trainer = fit(module, callback=HypernetCallback(samples=2, execution="loop"), max_epochs=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "one.ckpt", weights_only=True)
    Settings.made = 0
    loaded = Hypernet.from_checkpoint(tmp_path / "one.ckpt", Hyper().model)
    assert Settings.made == 0
    x = next(iter(data()))[0]
    assert torch.allclose(loaded(x), module.model.eval()(x), atol=1e-6)


def test_the_versions_of_states_are_kept(tmp_path):
    class Model(Classifier):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(Versioned(4, 8), nn.ReLU(), nn.Linear(8, 3))

    callback = HypernetCallback(samples=2, exclude=["0.*"])
    _, trainer = fit(Model(), callback=callback, max_epochs=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    Versioned.seen = None
    Hypernet.from_checkpoint(tmp_path / "one.ckpt", Model().model)
    assert Versioned.seen == 7


def test_what_plain_training_would_not_decay_does_not():
    """timm's grouping: norm layers and tokens, and what the target itself names."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def no_weight_decay(self):
            return {"token"}

        def forward(self, x):
            return self.head(self.norm(x + self.token + self.table).mean(1))

    hypernet = Hypernet(Tokens(), samples=2)
    groups = create_optimizer_v2(hypernet, "sgd", lr=0.1, weight_decay=0.1).param_groups
    decayed, spared = (
        {id(one) for group in groups if group["weight_decay"] == decay for one in group["params"]} for decay in (0.1, 0.0)
    )
    for index, bank in enumerate(hypernet.banks):
        offset = hypernet.generator.weight_generators[index].means
        names = {slot.parameter for slot in bank.slots}
        assert id(offset) in (spared if names <= {"token", "norm.weight", "norm.bias"} else decayed), names
    assert {"token"} in [{slot.parameter for slot in bank.slots} for bank in hypernet.banks]
