"""Reweighting: what counts as good, what changes of a Hypernet and what does not, and what checkpoints keep."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.analysis import Reweighting, reweight
from lightning_hypernet.generator import ReweightedPrior

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] + X[:, 1] > 0).long() + (X[:, 2] > 1).long()
LOADER = DataLoader(TensorDataset(X, Y), 50)


class Module(pl.LightningModule):
    def __init__(self, norm=False):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def trained(norm=False, steps=60, **options):
    torch.manual_seed(0)
    given = {"prior": {"name": "reweighted", "base": "uniform"}, "latent_dim": 3, "members": 4, **options}
    callback = HypernetCallback("model", diversity={"variance": 3.0}, samples=8, **given)
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(norm), DataLoader(TensorDataset(X, Y), 40, shuffle=True))
    return callback.hypernet.eval(), trainer


@torch.no_grad()
def losses_of(hypernet, latents, loss=F.cross_entropy):
    """The slow way: every network as a plain module, all data at once."""
    networks = hypernet.materialize(hypernet.decode(latents))
    return torch.stack([loss(network.eval()(X), Y) for network in networks]).double()


def named_of(hypernet, latents):
    return torch.stack([network.eval()(X).argmax(-1) for network in hypernet.materialize(hypernet.decode(latents))])


@pytest.fixture(scope="module")
def fitted():
    hypernet, trainer = trained()
    members = hypernet(X).detach()
    state = {name: value.clone() for name, value in hypernet.state_dict().items() if isinstance(value, torch.Tensor)}
    return hypernet, trainer, reweight(hypernet, LOADER, draws=400, keep=0.3), members, state


def test_networks_are_better_and_nothing_but_the_prior_has_changed(fitted):
    hypernet, _, found, _, state = fitted
    assert isinstance(found, Reweighting)
    assert found.after.mean() < found.before.mean() - found.before.std() / 3
    assert found.chosen < found.before.mean()
    assert abs(found.after.mean() - found.chosen) < found.before.std() / 3
    fresh = losses_of(hypernet, hypernet.draw(200))
    assert fresh.mean() == pytest.approx(float(found.after.mean()), abs=float(found.after.std()) / 3)
    after = hypernet.state_dict()
    assert {name for name, value in state.items() if not torch.equal(value, after[name])} <= {
        name for name in state if name.startswith("prior.")
    }
    assert not hypernet.training


def test_members_are_drawn_anew(fitted):
    hypernet, _, _, members, _ = fitted
    assert not torch.equal(hypernet(X), members)
    latents = hypernet.prior.renewed(hypernet.members.latents)
    assert not torch.equal(latents.z, hypernet.members.latents.z)
    expected = torch.stack([network.eval()(X) for network in hypernet.materialize(hypernet.decode(latents))]).mean(0)
    assert torch.allclose(hypernet(X), expected, atol=1e-6)
    assert torch.equal(hypernet(X), hypernet(X))


def test_a_checkpoint_gives_the_fitted_prior_back(fitted, tmp_path):
    hypernet, trainer, *_ = fitted
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Hypernet.from_checkpoint(tmp_path / "model.ckpt", Module().model)
    assert isinstance(loaded.prior, ReweightedPrior)
    assert loaded.prior.fitted
    assert torch.equal(loaded(X), hypernet(X))
    for _ in range(2):
        mine, theirs = hypernet.sample(5), loaded.sample(5)
        assert torch.equal(mine.latents.z, theirs.latents.z)
        assert torch.equal(hypernet.run(mine, X), loaded.run(theirs, X))
        assert torch.equal(hypernet.prior.log_prob(mine.latents), loaded.prior.log_prob(theirs.latents))


def test_losses_and_weights_are_those_of_their_formula():
    hypernet, _ = trained()
    drawn = type(hypernet.prior.base)(3)
    drawn.load_state_dict(hypernet.prior.base.state_dict())
    latents = drawn.draw(150)
    found = reweight(hypernet, LOADER, draws=150, keep=0.4, disagreement=0.9)
    hypernet.prior.fitted = False
    losses, named = losses_of(hypernet, latents), named_of(hypernet, latents)
    assert torch.allclose(found.before, losses, atol=1e-5)
    differing = (named[:, None] != named[None]).double().mean(2).sum(1) / 149
    assert torch.allclose(found.disagreement_before, differing, atol=1e-9)
    assert found.weights.sum() == pytest.approx(1)
    assert found.effective_size == pytest.approx(60, rel=0.01)
    assert float(found.weights @ differing) == pytest.approx(0.9 * float(differing.mean()), rel=1e-3)
    design = torch.stack([torch.ones(150).double(), found.before, differing], 1)
    rates = torch.linalg.lstsq(design, found.weights.log()[:, None]).solution[:, 0]
    assert torch.allclose(design @ rates, found.weights.log(), atol=1e-4)  # w is exp(a - tau L + b d)
    assert rates[1] < 0


@pytest.mark.slow
def test_the_disagreement_that_is_asked_for_costs_loss():
    found, differing = {}, {}
    for share in (None, 1.0):
        hypernet, _ = trained()
        found[share] = reweight(hypernet, LOADER, draws=400, keep=0.3, disagreement=share)
        named = named_of(hypernet, hypernet.draw(200))
        differing[share] = float((named[:, None] != named[None]).double().mean())
    assert found[None].disagreement_before is None
    assert found[1.0].disagreement_after.mean() == pytest.approx(differing[1.0], rel=0.1)
    assert found[1.0].disagreement_after.mean() > 0.8 * found[1.0].disagreement_before.mean()
    assert differing[1.0] > 1.05 * differing[None]
    assert found[None].chosen < found[1.0].chosen < float(found[1.0].before.mean())
    assert found[1.0].after.mean() < found[1.0].before.mean()


def test_any_loss_of_one_network_serves():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(4, 1), latent_dim=3, prior="reweighted").eval()
    targets = X[:, :1] * 2
    calls = []

    def loss(outputs, given):
        calls.append(outputs.shape)
        return F.mse_loss(outputs, given)

    found = reweight(hypernet, DataLoader(TensorDataset(X, targets), 60), draws=300, keep=0.2, loss=loss)
    assert set(calls) == {(60, 1)}
    assert found.after.mean() < found.before.mean()


def test_each_component_has_its_own_good_networks_and_conditions_are_passed_on():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(4, 3), latent_dim=3, components=2, context_dim=1, prior="reweighted").eval()
    found = reweight(hypernet, LOADER, draws=200, keep=0.5, context=torch.tensor([0.5]))
    assert found.weights.sum() == pytest.approx(1)
    assert found.effective_size == pytest.approx(100, rel=0.05)
    assert sorted(hypernet.draw(20).component.bincount().tolist()) == [10, 10]


@pytest.mark.slow
def test_members_statistics_are_those_of_the_new_members():
    hypernet, _ = trained(norm=True)
    hypernet(X)
    before = hypernet.members.statistics.tensors()["1.running_mean"].clone()
    reweight(hypernet, LOADER, draws=100, keep=0.3)
    after = hypernet.members.statistics.tensors()["1.running_mean"]
    assert not torch.equal(before, after)
    hypernet.members.forget()
    hypernet.update_statistics()
    assert torch.equal(hypernet.members.statistics.tensors()["1.running_mean"], after)


def test_a_second_reweighting_starts_from_the_base_again(fitted):
    hypernet, *_ = fitted
    found = reweight(hypernet, LOADER, draws=200, keep=1.0)
    assert found.weights == pytest.approx([1 / 200] * 200)
    assert found.fit.share > 0.8


def test_the_histogram_is_drawn():
    pytest.importorskip("matplotlib").use("agg")
    prior = ReweightedPrior(1)
    fit = prior.fit(prior.base.draw(20), steps=1)
    figure, axes = Reweighting(torch.rand(50), torch.full((50,), 0.02), torch.rand(50), fit).plot()
    assert axes.get_legend() is not None
    figure.clear()


@pytest.mark.parametrize(
    ("prior", "options", "message"),
    [
        ("normal", {}, "NormalPrior, .*prior='reweighted'"),
        (Normal(0.0, 1.0), {}, "DistributionPrior, .*prior='reweighted'"),
        ("reweighted", {"keep": 0}, "keep must lie in 0 to 1, not 0"),
        ("reweighted", {"keep": 1.5}, "keep must lie in 0 to 1, not 1.5"),
        ("reweighted", {"draws": 1}, "draws must be 2 or more"),
        ("reweighted", {"disagreement": -1}, "disagreement must be a number, above 0"),
        ("reweighted", {"loss": "mse"}, "loss must be a function .*'mse'"),
        ("reweighted", {"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")}, r"one number .*\(50,\)"),
        ("reweighted", {"loss": lambda o, t: F.cross_entropy(o, t) * torch.nan}, "every network is NaN"),
        ("reweighted", {"loader": iter(LOADER)}, "several times"),
        ("reweighted", {"loader": []}, "empty"),
    ],
)
def test_what_cannot_be_reweighted_is_refused(prior, options, message):
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(4, 3), latent_dim=3, prior=prior).eval()
    with pytest.raises((TypeError, ValueError), match=message):
        reweight(hypernet, options.pop("loader", LOADER), **{"draws": 20, **options})
    assert not getattr(hypernet.prior, "fitted", False)


def test_disagreement_needs_classes():
    hypernet = Hypernet(nn.Linear(4, 1), latent_dim=3, prior="reweighted").eval()
    loader = [(X, X[:, :1])]
    with pytest.raises(ValueError, match=r"outputs \(batch, classes\), .*\(120, 1\): leave it None"):
        reweight(hypernet, loader, draws=20, loss=F.mse_loss, disagreement=1.0)
