import copy
import math
import pickle
import subprocess
import sys
import warnings

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel as OtherBoringModel
from pytorch_lightning.demos.boring_classes import BoringModel, ManualOptimBoringModel
from pytorch_lightning.demos.lstm import LightningLSTM
from pytorch_lightning.demos.transformer import LightningTransformer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import GeneratorConfig, Hypernet, HypernetCallback
from lightning_hypernet.diversity import Entropy
from lightning_hypernet.search import HyperparameterSearch
from tests.diversity.test_diversity import BrokenPlugin

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(pl.LightningModule):
    """An ordinary module of the tests' own: it counts what it is asked and keeps what it sees."""

    def __init__(self, norm=True, lr=1e-2):
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Linear(16, 3))
        self.losses = []
        self.seen = {"val": [], "test": []}

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(self.model(batch[0]))

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(self.model(batch[0]))

    def predict_step(self, batch, batch_idx):
        return self.model(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def data(n=64, batch=16):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()), batch)


def fit(module, trainer=pl.Trainer, loader=None, callback=None, **options):
    pl.seed_everything(0, verbose=False)
    callback = callback or HypernetCallback(diversity={"entropy": 1e-3}, samples=4, members=3)
    trainer = trainer(**{**QUIET, "max_epochs": 2, "num_sanity_val_steps": 0, **options}, callbacks=[callback])
    trainer.fit(module, loader or data(), *([data()] if module.seen else []))
    return callback, trainer


def test_a_lightning_module_trains_unchanged():
    module = Classifier()
    step = type(module).training_step
    callback, trainer = fit(module, max_epochs=25)
    assert isinstance(module.model, Hypernet)
    assert module.model is callback.hypernet
    assert sum(module.losses[-4:]) < 0.8 * sum(module.losses[:4])
    assert "training_step" not in vars(module)
    assert type(module).training_step is step
    assert {"hypernet/entropy", "hypernet/member_distance"} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["hypernet/member_distance"] > 0
    assert callback.hypernet.population is None


def test_diversity_joins_the_loss_that_is_backpropagated():
    """One SGD step with rate 1, with and without: parameters differ by the weighted gradient of the diversity."""

    class Plain(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    class Keeping(HypernetCallback):
        def on_train_start(self, trainer, pl_module):
            self.before = copy.deepcopy(self.hypernet)

    ends = []
    for weight in (0.0, 0.5):
        pl.seed_everything(1, verbose=False)
        module = Plain(norm=False)
        callback = Keeping(diversity={"entropy": weight}, samples=4)
        fit(module, callback=callback, max_steps=1, max_epochs=-1, limit_val_batches=0)
        ends.append(module.model.generator.mean_codes.detach())
    hypernet = callback.before.train()
    hypernet(next(iter(data()))[0])
    Entropy()(hypernet.population).backward()
    expected = 0.5 * hypernet.generator.mean_codes.grad
    assert expected.abs().sum() > 0
    assert torch.allclose(ends[0] - ends[1], expected, atol=1e-5)


def test_the_losses_see_the_networks_that_made_the_loss(monkeypatch):
    seen = []

    class TwoViews(Classifier):
        def training_step(self, batch, batch_idx):
            one, two = self.model(batch[0]), self.model(batch[0] + 1)
            seen.append(self.model.population.latents.z)
            return {"loss": F.cross_entropy(one, batch[1]) + (one - two).square().mean(), "extra": batch_idx}

    original = Hypernet.draw
    draws = []

    def draw(self, *args, **kwargs):
        draws.append(original(self, *args, **kwargs))
        return draws[-1]

    monkeypatch.setattr(Hypernet, "draw", draw)
    fit(TwoViews(), max_epochs=1, limit_val_batches=0)
    assert len(draws) == 1 + 4
    assert all(torch.equal(latents, drawn.z) for latents, drawn in zip(seen, draws[1:], strict=True))


@pytest.mark.parametrize("trainer", [pl.Trainer, lp.Trainer])
def test_both_class_trees(trainer):
    module = BoringModel() if trainer is pl.Trainer else OtherBoringModel()
    callback = HypernetCallback(target="layer", diversity="variance")
    trainer(**QUIET, max_steps=3, limit_val_batches=2, callbacks=[callback]).fit(module)
    assert isinstance(callback, pl.Callback)
    assert isinstance(callback, lp.Callback)
    assert len(callback.hypernet.ensemble(2)) == 2


def vocabulary(size, length=6, n=24):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, size, (n, length + 1), generator=generator)
    return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), 12)


@pytest.mark.filterwarnings("ignore:no gauge is fixed")
@pytest.mark.parametrize(
    ("make", "target", "loader"),
    [
        (BoringModel, "layer", lambda: None),
        (BoringModel, ".", lambda: None),
        (lambda: LightningTransformer(vocab_size=20), "model", lambda: vocabulary(20)),
    ],
)
def test_modules_that_others_wrote(make, target, loader):
    pl.seed_everything(0, verbose=False)
    module = make()
    module.prepare_data = lambda: None  # the data are ours, nothing is downloaded
    callback = HypernetCallback(target=target, diversity={"entropy": 1e-3}, samples=4, generator={"hidden": (16,)})
    trainer = pl.Trainer(**QUIET, max_epochs=1, limit_train_batches=3, limit_val_batches=2, callbacks=[callback])
    trainer.fit(module, loader())
    assert math.isfinite(trainer.callback_metrics["hypernet/entropy"])
    assert trainer.global_step > 0


@pytest.mark.filterwarnings("ignore:no gauge is fixed")
def test_a_stateful_recurrent_module_that_others_wrote():
    """It asks its model for initial states, and carries states from step to step."""
    pl.seed_everything(0, verbose=False)
    module = LightningLSTM(vocab_size=20)
    module.prepare_data = lambda: None
    module.model = type(module.model)(vocab_size=20, ninp=16, nhid=16, nlayers=2)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    callback = HypernetCallback(diversity={"entropy": 1e-3}, samples=3, generator={"hidden": (16,)})
    trainer = pl.Trainer(**QUIET, max_epochs=2, callbacks=[callback])
    trainer.fit(module, vocabulary(20))
    assert math.isfinite(trainer.callback_metrics["train_loss"])


def test_the_modules_own_forward():
    class Own(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.scale = nn.Parameter(torch.ones(3))
            self.last = nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.first(x).relu()) * self.scale

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    module = Own()
    module.seen = None
    callback = HypernetCallback(target=".", samples=4, exclude=("last.bias",))
    fit(module, callback=callback)
    assert module.first.weight is None
    assert module.last.bias is module.hypernet.target.last.bias
    assert module.eval()(torch.randn(5, 4)).shape == (5, 3)
    plain = callback.hypernet.materialize(callback.hypernet.sample(1))[0]
    Own().load_state_dict(plain.state_dict())


def test_evaluation_uses_calibrated_members():
    module = Classifier()
    callback, trainer = fit(module)
    hypernet = callback.hypernet.eval()
    x = next(iter(data()))[0]
    assert torch.allclose(module.seen["val"][-4], hypernet(x), atol=1e-5)
    assert hypernet.members.statistics.tensors()["1.running_mean"].abs().sum() > 0
    trainer.test(module, data(), verbose=False)
    (prediction, *_) = trainer.predict(module, data())
    assert torch.allclose(prediction, module.seen["test"][0], atol=1e-6)


def test_norm_statistics_fit_the_weights_after_training():
    callback, _ = fit(Classifier(), max_epochs=3, check_val_every_n_epoch=2)
    hypernet = callback.hypernet.eval()
    x = next(iter(data()))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = hypernet(x)
    hypernet.update_statistics()
    assert torch.equal(hypernet(x), outputs)


@pytest.mark.parametrize("automatic", [True, False])
def test_a_target_that_comes_in_evaluation_mode_is_trained(automatic):
    """Loaders of pretrained models return it so, and trainers leave it so."""
    module = Classifier()
    module.automatic_optimization = automatic
    module.model.eval()
    callback, trainer = fit(module, callback=HypernetCallback(samples=4))
    assert callback.hypernet.prior.draws == 2 + 2 * trainer.num_training_batches  # first codes, members, every step
    assert not callback.hypernet.target.training


def test_fit_then_test_then_resume(tmp_path):
    def trainer(epochs, callback):
        return pl.Trainer(
            **{**QUIET, "enable_checkpointing": True}, max_epochs=epochs, default_root_dir=tmp_path, callbacks=[callback],
            num_sanity_val_steps=0,
        )  # fmt: skip

    def callback():
        return HypernetCallback(diversity={"entropy": 1e-3, "mutual_information": 0.1}, samples=4, execution="loop")

    pl.seed_everything(0, verbose=False)
    straight, first = Classifier(), callback()
    trainer(4, first).fit(straight, data())

    pl.seed_everything(0, verbose=False)
    half, second = Classifier(), callback()
    short = trainer(2, second)
    short.fit(half, data())
    path = short.checkpoint_callback.best_model_path
    short.test(half, data(), ckpt_path="best", verbose=False)

    resumed, third = Classifier(), callback()
    trainer(4, third).fit(resumed, data(), ckpt_path=path)
    assert half.losses + resumed.losses == straight.losses
    state = straight.state_dict()
    for name, value in resumed.state_dict().items():
        if "members.statistics" not in name:  # estimated from the inputs since the start of this run
            same = torch.equal if isinstance(value, torch.Tensor) else dict.__eq__
            assert same(value, state[name]), name

    fresh, fourth = Classifier(), callback()
    trainer(1, fourth).test(fresh, data(), ckpt_path=path, verbose=False)
    assert torch.allclose(fresh.seen["test"][0], half.seen["test"][0], atol=1e-6)

    loaded = Hypernet.from_checkpoint(path, Classifier().model)
    x = next(iter(data()))[0]
    assert torch.allclose(loaded(x), fourth.hypernet.eval()(x), atol=1e-6)
    with pytest.raises(ValueError, match="holds no Hypernet for the target 'net'; it has .'model'."):
        Hypernet.from_checkpoint(path, Classifier().model, name="net")


def test_a_checkpoint_knows_the_filters_that_the_graph_showed(tmp_path):
    class Activated(Classifier):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3))

    chosen = HypernetCallback(samples=2, example_inputs=torch.randn(2, 4))
    trained = pl.Trainer(max_steps=2, callbacks=[chosen], **QUIET)
    trained.fit(Activated(), data())
    assert [bank.name for bank in chosen.hypernet.banks] == ["0", "3"]
    assert not any(isinstance(value, torch.Tensor) for value in chosen.hypernet.options.values())
    trained.save_checkpoint(tmp_path / "at.ckpt")
    loaded = Hypernet.from_checkpoint(tmp_path / "at.ckpt", Activated().model)
    assert [bank.name for bank in loaded.banks] == ["0", "3"]
    changed = Hypernet.from_checkpoint(tmp_path / "at.ckpt", Activated().model, reduce=None)
    assert changed(torch.randn(2, 4)).shape == (10, 2, 3)
    x = next(iter(data()))[0]
    assert torch.allclose(loaded(x), chosen.hypernet.eval()(x), atol=1e-6)


def test_a_module_built_in_configure_model():
    class Late(Classifier):
        def __init__(self):
            super().__init__()
            self.model = None

        def configure_model(self):
            if self.model is None:
                self.model = nn.Linear(4, 3)

    module = Late()
    fit(module, max_epochs=1)
    assert isinstance(module.model, Hypernet)


def test_manual_optimization():
    class Manual(ManualOptimBoringModel):
        add = False

        def training_step(self, batch, batch_idx):
            loss = self.step(batch)
            if self.add:
                loss = loss + self.layer.diversity_loss()
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def run(add):
        module = Manual()
        module.add = add
        callback = HypernetCallback(target="layer", diversity="entropy")
        pl.Trainer(**QUIET, max_epochs=1, limit_train_batches=2, limit_val_batches=0, callbacks=[callback]).fit(module)

    run(add=True)
    with pytest.raises(RuntimeError, match=r"manual optimization.*add hypernet.diversity_loss\(\)"):
        run(add=False)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ("text", TypeError, "must return a tensor or a dict with a tensor 'loss', not str"),
        ({"value": 1}, TypeError, "must return a tensor or a dict with a tensor 'loss', not a dict of .'value'."),
        (torch.tensor(math.nan, requires_grad=True), ValueError, "the loss that training_step returns is NaN"),
        (torch.ones((), requires_grad=True), RuntimeError, "training_step never called 'model'"),
    ],
)
def test_what_training_step_must_do(result, error, message):
    class Odd(Classifier):
        def training_step(self, batch, batch_idx):
            return result

    module = Odd()
    with pytest.raises(error, match=message):
        fit(module)
    assert "training_step" not in vars(module)


def test_a_skipped_step():
    class Skipping(Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    module = Skipping()
    fit(module, max_epochs=1)
    assert len(module.losses) == 2


def test_a_plugin_that_raises_stops_with_its_name():
    with pytest.raises(RuntimeError, match="the diversity loss 'broken' failed: by design"):
        fit(Classifier(), callback=HypernetCallback(diversity="broken", plugins=[BrokenPlugin()]))


def test_parameters_shared_with_the_outside():
    class Shared(Classifier):
        def __init__(self):
            super().__init__()
            self.mirror = nn.Linear(4, 16)
            self.mirror.weight = self.model[0].weight

    with pytest.raises(ValueError, match="mirror.weight of Shared are also parameters of the target 'model'"):
        fit(Shared())


def test_optimizers_that_were_made_too_early():
    class Early(Classifier):
        def __init__(self):
            super().__init__()
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

        def configure_optimizers(self):
            return self.optimizer

    with pytest.raises(ValueError, match=r"an optimizer of Early was made before fit, of 0\.weight, .* configure_optimizers"):
        fit(Early(), max_epochs=1)


def test_optimizers_that_miss_the_generator():
    class Forgetful(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adam(list(self.model.parameters())[:1], lr=1e-3)

    with pytest.warns(UserWarning, match="the optimizers of Forgetful miss parameters of the Hypernet at 'model'"):
        fit(Forgetful(), max_epochs=1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown diversity loss 'entropie'"):
        HypernetCallback(diversity="entropie")
    with pytest.raises(TypeError, match="has no option sample; did you mean .samples.. there are target, diversity"):
        HypernetCallback(sample=3)
    with pytest.raises(ValueError, match="Classifier has no module 'net'; set target to one of model, model.0"):
        fit(Classifier(), callback=HypernetCallback(target="net"))
    with pytest.raises(RuntimeError, match="built when a trainer sets the callback up"):
        HypernetCallback().hypernet  # noqa: B018


def test_a_part_called_where_only_forward_is_generated():
    with pytest.raises(RuntimeError, match=r"generated for self\(...\) alone; call self\(...\)"):
        fit(Classifier(), callback=HypernetCallback(target="."))


def test_a_hypernet_of_the_users_own_is_used():
    module = Classifier()
    module.model = Hypernet(module.model, samples=4)
    with pytest.raises(ValueError, match="is a Hypernet already, with samples=4, not 8"):
        fit(module, callback=HypernetCallback(samples=8))
    own = module.model
    callback, trainer = fit(module, callback=HypernetCallback(diversity="variance"))
    assert callback.hypernet is own
    assert "hypernet/variance" in trainer.callback_metrics
    _, trainer = fit(module, callback=HypernetCallback(diversity="entropy"))
    assert "hypernet/entropy" in trainer.callback_metrics
    entropy = own.diversity.losses["entropy"]
    fit(module, callback=HypernetCallback(diversity="entropy"))
    assert own.diversity.losses["entropy"] is entropy
    fit(module, callback=HypernetCallback(diversity={"entropy": {"p": 1}}))
    assert own.diversity.losses["entropy"].p == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"prior": "uniform"}, "prior='normal', not 'uniform'"),
        ({"gauge": "none"}, "gauge='auto', not 'none'"),
        ({"generator": {"code_size": 7}}, "generator.code_size=None, not 7"),
    ],
)
def test_a_hypernet_with_other_options_is_refused(option, message):
    module = Classifier()
    fit(module)
    fit(module, callback=HypernetCallback(samples=4, prior="normal", generator=GeneratorConfig(), gauge="auto"))
    with pytest.raises(ValueError, match=message):
        fit(module, callback=HypernetCallback(**option))


def test_logging_may_be_off():
    """Which Lightning spells as 0 steps between two lines."""
    module = Classifier()
    pl.Trainer(**QUIET, max_steps=2, log_every_n_steps=0, callbacks=[HypernetCallback(samples=4)]).fit(module, data())


def test_validation_before_training_and_the_sanity_check():
    module = Classifier()
    trainer = pl.Trainer(**QUIET, max_epochs=1, num_sanity_val_steps=2, callbacks=[HypernetCallback(samples=4)])
    with pytest.warns(UserWarning, match="never estimated"):
        trainer.validate(module, data(), verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the norm statistics")
        trainer.fit(module, data(), data())


def test_frozen_parameters_come_back_from_a_checkpoint(tmp_path):
    module = Classifier()
    module.model[0].requires_grad_(False)
    _, trainer = fit(module)
    path = tmp_path / "one.ckpt"
    trainer.save_checkpoint(path)
    loaded = Hypernet.from_checkpoint(path, Classifier().model)
    assert torch.equal(loaded.target[0].weight, module.model.target[0].weight)


def test_bfloat16_autocast():
    module = Classifier()
    fit(module, precision="bf16-mixed", max_epochs=1)
    assert all(math.isfinite(loss) for loss in module.losses)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("ddp", ""), pytest.param("ddp_find_unused_parameters_true", ", branch=0.5, components=2", marks=pytest.mark.slow)],
)
def test_two_processes(strategy, options, tmp_path):
    """Ranks draw different networks, search neighbours among all, and keep equal parameters."""
    (tmp_path / "main.py").write_text(
        """
import math, sys
import pytorch_lightning as pl, torch
from pytorch_lightning.demos.boring_classes import BoringModel
from lightning_hypernet import HypernetCallback
from lightning_hypernet.diversity import OutputEntropy

class Model(BoringModel):
    def on_train_end(self):
        population = self.layer.sample(3)
        outputs = population.outputs = torch.randn(3, 2 + self.global_rank, generator=torch.Generator().manual_seed(0))
        apart = torch.cdist(outputs, outputs).fill_diagonal_(math.inf).min(1).values
        by_hand = -population.latents.z.shape[1] * apart.log().mean() - torch.digamma(torch.tensor(3.0))
        assert torch.allclose(OutputEntropy()(population), by_hand), "outputs of other examples were compared"
        sums = self.all_gather(torch.stack([p.detach().sum() for p in self.parameters()]))
        latents = self.all_gather(self.layer.sample(2).latents.z)
        assert torch.equal(sums[0], sums[1]), "parameters differ"
        assert not torch.equal(latents[0], latents[1]), "latents are equal"
        print("both agree", flush=True)

callback = HypernetCallback(target="layer", diversity={"entropy": 1e-3}, samples=4OPTIONS)
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="STRATEGY", max_epochs=1, limit_train_batches=4, logger=False,
                     limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback])
trainer.fit(Model())
""".replace("STRATEGY", strategy).replace("OPTIONS", options)
    )
    run = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert "both agree" in run.stdout


def test_names_that_hide_the_targets_are_told():
    module = Classifier()
    module.model.sample = lambda: "its own"
    with pytest.warns(UserWarning, match="sample: 'model' has these names and the Hypernet in its place too"):
        fit(module, max_steps=1)
    assert len(module.model.sample(2)) == 2


def test_batch_norm_over_ranks_is_refused():
    module = Classifier()
    module.model = nn.SyncBatchNorm.convert_sync_batchnorm(module.model)
    with pytest.raises(ValueError, match="SyncBatchNorm in 'model' normalises over all ranks, which train different networks"):
        fit(module)


class Shuffled(Classifier):
    """Calls the target with other examples than the batch's first."""

    def __init__(self, told, keep=16):
        super().__init__(norm=False)
        self.told, self.keep = told, keep

    def training_step(self, batch, batch_idx):
        order = torch.randperm(16)[: self.keep]
        x, y = (part[order] for part in batch)
        loss = F.cross_entropy(self.model(x), y)
        if self.told:
            self.model.population.targets = y
        joined = self.model.population.outputs.softmax(-1).mean(0).log()
        self.by_hand = F.nll_loss(joined, y)
        return loss


def test_targets_of_a_changed_batch():
    module = Shuffled(told=True)
    _, trainer = fit(module, callback=HypernetCallback(diversity={"ensemble": 0.3}, samples=4))
    assert trainer.logged_metrics["hypernet/ensemble"] == pytest.approx(module.by_hand.item(), rel=1e-5)
    with pytest.raises(RuntimeError, match="the targets are 16 and the inputs 8: where training_step changes the batch"):
        fit(Shuffled(told=False, keep=8), callback=HypernetCallback(diversity={"ensemble": 0.3}, samples=4))


def test_gradients_accumulate_over_batches():
    module = Classifier()
    _, trainer = fit(module, accumulate_grad_batches=2)
    assert trainer.global_step == 4


def test_copies_of_the_module():
    module = Classifier()
    fit(module, callback=HypernetCallback(diversity={"entropy": 1e-3}, samples=4, members=3, execution="loop"))
    other = copy.deepcopy(module)
    x = next(iter(data()))[0]
    assert torch.equal(other.model.eval()(x), module.model.eval()(x))
    with torch.no_grad():
        for parameter in other.model.generator.parameters():
            parameter.add_(1.0)
    other.model.update_statistics(data())
    assert not torch.allclose(other.model(x), module.model(x), atol=0.1)


averages = pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="this Lightning has no EMA")


def averaged(order, module, validation=None):
    """Train with an EMA of decay 0.5; return the generator's parameters after each of the steps."""
    rows = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            rows.append([parameter.detach().clone() for parameter in pl_module.model.generator.parameters()])

    pl.seed_everything(0, verbose=False)
    callbacks = {"ours": HypernetCallback(samples=4, members=3), "ema": pl.callbacks.EMAWeightAveraging(decay=0.5)}
    chosen = [callbacks[name] for name in order]
    trainer = pl.Trainer(**QUIET, max_epochs=2, num_sanity_val_steps=0, callbacks=[*chosen, Keep()])
    trainer.fit(module, data(), validation)
    return rows


@averages
@pytest.mark.parametrize(("norm", "validation"), [(False, data()), (True, None)])
def test_an_exponential_moving_average_behind_the_callback(norm, validation):
    """Validation swaps weights and swaps them back; at the end the mean weights stay, and members are made of them."""
    module = Classifier(norm=norm)
    rows = averaged(["ours", "ema"], module, validation)
    assert len(rows) == 8
    mean = rows[0]
    for row in rows[1:]:
        mean = [(old + new) / 2 for old, new in zip(mean, row, strict=True)]
    now = list(module.model.generator.parameters())
    assert max((a - b).abs().max() for a, b in zip(now, rows[-1], strict=True)) > 1e-3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(now, mean, strict=True))
    hypernet = module.model.eval()
    hypernet.update_statistics()
    x = next(iter(data()))[0]
    with torch.no_grad():
        members = [member.eval()(x) for member in hypernet.materialize(hypernet.member_population())]
        outputs = hypernet(x)
    assert torch.allclose(outputs, torch.stack(members).mean(0), atol=1e-5)
    assert torch.equal(copy.deepcopy(module).model(x), outputs)


@averages
def test_an_exponential_moving_average_before_the_callback():
    """It copied the module before the Hypernet stood in it: that must not pass in silence."""
    with pytest.raises((RuntimeError, ValueError)):
        averaged(["ema", "ours"], Classifier())


class CliModule(OtherBoringModel):
    pass


YAML = (
    "trainer:\n"
    "  max_steps: 1\n  logger: false\n  enable_checkpointing: false\n  enable_progress_bar: false\n"
    "  enable_model_summary: false\n  accelerator: cpu\n  limit_val_batches: 0\n"
    "  callbacks:\n"
    "    - class_path: lightning_hypernet.HypernetCallback\n"
    "      init_args:\n"
    "        target: layer\n"
)


def test_yaml_reaches_every_option(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(
        YAML + "        diversity:\n          entropy: 0.002\n          variance: {weight: 0.5}\n"
        "        samples: 3\n"
        "        components: 2\n"
        "        generator:\n          code_size: 5\n"
    )
    monkeypatch.setattr(sys, "argv", ["main", "fit", "--config", str(tmp_path / "config.yaml")])
    cli = LightningCLI(CliModule, save_config_callback=None)
    (callback,) = [one for one in cli.trainer.callbacks if isinstance(one, HypernetCallback)]
    assert callback.hypernet.samples == 3
    assert callback.hypernet.components == 2
    assert callback.hypernet.generator.extractor.code_size == 5
    assert callback.hypernet.diversity.weights == {"entropy": 0.002, "variance": 0.5}


def test_yaml_reaches_conditions_and_their_search(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(
        YAML + "        conditions:\n"
        "          decay: {name: l2, parameters: '*weight', range: {log_uniform: [1e-4, 1]}}\n"
        "          kind: {name: given, range: {choice: [a, b]}}\n"
        "    - class_path: lightning_hypernet.search.HyperparameterSearch\n"
        "      init_args: {mode: global, start: {decay: 0.5, kind: b}}\n"
    )
    monkeypatch.setattr(sys, "argv", ["main", "fit", "--config", str(tmp_path / "config.yaml")])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    with pytest.warns(UserWarning, match="within its warmup"):
        cli = LightningCLI(CliModule, save_config_callback=None)
    (callback,) = [one for one in cli.trainer.callbacks if isinstance(one, HypernetCallback)]
    (search,) = [one for one in cli.trainer.callbacks if isinstance(one, HyperparameterSearch)]
    assert callback.hypernet.context_dim == 3 and search.mode == "global"
    assert search.best == {"decay": pytest.approx(0.5, rel=1e-5), "kind": "b"}


@pytest.mark.parametrize("target", ["model", "."])
def test_copies_and_pickles_in_the_middle_of_fit(target):
    """A copy taken inside a step is outside of it, has a step of its own and trains itself."""
    taken = []

    class Copied(Classifier):
        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = F.cross_entropy(self(x), y)
            if batch_idx == 1:
                taken[:] = [copy.deepcopy(self), pickle.loads(pickle.dumps(self))]
            return loss

    globals()["Copied"] = Copied
    Copied.__qualname__ = "Copied"
    module = Copied()
    callback, _ = fit(module, callback=HypernetCallback(target=target, samples=4), max_epochs=1, limit_val_batches=0)
    hypernet = callback.hypernet
    before = {name: value.clone() for name, value in hypernet.generator.named_parameters()}
    x, y = next(iter(data()))
    for one in taken:
        other = one.model if target == "model" else one.hypernet
        assert other is not hypernet
        assert other.population is None
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        start = {name: value.clone() for name, value in other.generator.named_parameters()}
        draws = other.prior.draws
        loss = one.training_step((x, y), 0)
        loss.backward()
        optimizer.step()
        assert other.prior.draws == draws + 1
        assert any(not torch.equal(value, start[name]) for name, value in other.generator.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in hypernet.generator.named_parameters())


def test_a_resumed_run_takes_over_the_choice_of_backends(tmp_path, monkeypatch):
    from lightning_hypernet.target.trial import Trial

    monkeypatch.setattr(Trial, "seconds", lambda self, name: {"loop": 0.002, "vmap": 0.0015}[name])

    def trained(module, epochs, path=None):
        callback = HypernetCallback(samples=4)
        trainer = pl.Trainer(**QUIET, max_epochs=epochs, num_sanity_val_steps=0, callbacks=[callback])
        trainer.fit(module, data(), ckpt_path=path)
        return callback.hypernet, trainer

    pl.seed_everything(0, verbose=False)
    straight = Classifier()
    trained(straight, 4)
    pl.seed_everything(0, verbose=False)
    half = Classifier()
    hypernet, trainer = trained(half, 2)
    assert {made["backend"] for made in hypernet.executor.choices.made.values()} == {"vmap"}
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    monkeypatch.setattr(Trial, "seconds", lambda self, name: {"loop": 0.001, "vmap": 0.0015}[name])
    resumed = Classifier()
    again, _ = trained(resumed, 4, tmp_path / "half.ckpt")
    assert {made["backend"] for made in again.executor.choices.made.values()} == {"vmap"}
    assert half.losses + resumed.losses == straight.losses


class Scored(Classifier):
    """It knows what validation made, and with which inputs statistics were estimated."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, 3))


@averages
def test_validation_of_an_average_is_that_of_its_weights_with_their_own_statistics(tmp_path):
    """A Hypernet with the averaged weights, and statistics estimated for them by hand; the checkpoint holds the same."""
    pl.seed_everything(0, verbose=False)
    module, callback, ema = Scored(), HypernetCallback(samples=4, members=3), pl.callbacks.EMAWeightAveraging(decay=0.8)
    expected = []

    class ByHand(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            mean = copy.deepcopy(pl_module.model)
            mean.update_statistics(callback.hypernet.members.recent.on(torch.device("cpu")))
            expected.append(mean.eval()(batch[0]))

    trainer = pl.Trainer(**QUIET, max_epochs=3, num_sanity_val_steps=0, callbacks=[callback, ema, ByHand()])
    trainer.fit(module, data(), data())
    assert len(module.seen["val"]) == len(expected) == 12
    for output, right in zip(module.seen["val"], expected, strict=True):
        assert torch.allclose(output, right, atol=1e-6)
    path = tmp_path / "average.ckpt"
    x = next(iter(data()))[0]
    trainer.save_checkpoint(path)
    loaded = Hypernet.from_checkpoint(path, Scored().model)
    assert torch.allclose(loaded(x), module.model.eval()(x), atol=1e-6)


@pytest.mark.slow
def test_new_samples_of_a_checkpoint_are_as_good_as_before(tmp_path):
    module = Scored()
    loader = DataLoader(data().dataset, 16, shuffle=True)
    callback, trainer = fit(module, max_epochs=25, loader=loader)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    x, y = data().dataset.tensors

    def accuracy(hypernet):
        with torch.no_grad():
            return (hypernet.run(hypernet.sample(20), x).argmax(-1) == y).float().mean().item()

    before = accuracy(callback.hypernet.eval())
    loaded = Hypernet.from_checkpoint(tmp_path / "one.ckpt", Scored().model, loader=loader)
    assert before > 0.7
    assert accuracy(loaded) == pytest.approx(before, abs=0.03)
    with pytest.raises(RuntimeError, match=r"pass loader= to from_checkpoint"):
        accuracy(Hypernet.from_checkpoint(tmp_path / "one.ckpt", Scored().model))


def test_statistics_after_a_resume(tmp_path, monkeypatch):
    """As in the checkpoint until enough inputs were seen again, from then on bit for bit those of one long run."""
    monkeypatch.setattr("lightning_hypernet.target.recent.EXAMPLES", 160)  # two and a half epochs

    class Kept(pl.Callback):
        def __init__(self):
            self.rows = {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.manual_seed(trainer.global_step)  # of the dropout, which no checkpoint holds

        def on_validation_epoch_end(self, trainer, pl_module):
            statistics = pl_module.model.members.statistics.tensors()
            self.rows[trainer.current_epoch] = {name: value.clone() for name, value in statistics.items()}

    def run(epochs, path=None):
        pl.seed_everything(0, verbose=False)
        module, kept = Scored(dropout=0.3), Kept()
        trainer = pl.Trainer(**QUIET, max_epochs=epochs, callbacks=[HypernetCallback(samples=4, execution="loop"), kept],
                             num_sanity_val_steps=0)  # fmt: skip
        trainer.fit(module, data(), data(), ckpt_path=path)
        return trainer, kept.rows

    _, straight = run(8)
    trainer, _ = run(4)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = run(8, tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    for epoch in range(4, 8):
        for name, value in resumed[epoch].items():
            if epoch < 6:
                assert torch.equal(value, state[f"model.members.statistics.{name.replace('.', '/')}"]), (epoch, name)
            else:
                assert torch.equal(value, straight[epoch][name]), (epoch, name)
