"""How many networks a training step draws, where it is said and where it is not."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn

from lightning_hypernet import DiversityLoss, Hypernet, HypernetCallback, hookimpl
from tests.test_callback import QUIET


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({}, 1), ({"components": 3}, 3), ({"context_dim": 2}, 8), ({"samples": 2}, 2), ({"samples": None}, 1),
        ({"diversity": "entropy"}, 8), ({"diversity": "entropy", "samples": 3}, 3),
        ({"diversity": "entropy", "components": 9}, 18), ({"diversity": "variance"}, 2), ({"preset": "manifold"}, 2),
        ({"diversity": "variance", "components": 3}, 6), ({"diversity": "variance", "context_dim": 2}, 8),
        ({"diversity": {"variance": 0.1, "entropy": 0.1}}, 8), ({"generator": "compact"}, 2),
        ({"generator": {"norm": "batch"}}, 2), ({"generator": "compact", "components": 3}, 3),
    ],
)  # fmt: skip
def test_a_step_draws_one_network_of_every_component_and_more_where_they_are_compared(options, samples):
    given = {"members": 2, "latent_dim": 4, "execution": "loop", **options}
    asked = {"context": lambda batch: torch.zeros(2)} if "context_dim" in options else {}
    callback = HypernetCallback("layer", **asked, **given)
    module = BoringModel()
    callback.setup(pl.Trainer(**QUIET, callbacks=[callback]), module, "fit")
    assert callback.hypernet.samples == samples
    other = HypernetCallback("layer", **asked, **given)  # one that says as much takes it over as it is
    other.setup(pl.Trainer(**QUIET, callbacks=[other]), module, "fit")
    assert other.hypernet is callback.hypernet and other.hypernet.samples == samples


def take_over(module, **options):
    """The Hypernet of a module as a callback sets it up."""
    callback = HypernetCallback("layer", members=2, latent_dim=4, execution="loop", **options)
    callback.setup(pl.Trainer(**QUIET, callbacks=[callback]), module, "fit")
    return callback.hypernet


def test_another_diversity_draws_as_many_networks_as_it_needs_unless_a_number_was_given_or_set():
    module = BoringModel()
    hypernet = take_over(module)
    assert take_over(module, samples=1) is hypernet and hypernet.samples == 1  # what is drawn there already
    for diversity, samples in (("entropy", 8), (None, 1), ("variance", 2), ("entropy", 8)):
        assert take_over(module, diversity=diversity) is hypernet
        assert (hypernet.samples, hypernet.options["samples"]) == (samples, samples)
    assert take_over(module, diversity="entropy", samples=8) is hypernet
    with pytest.raises(ValueError, match="a Hypernet already, with samples=8, not 3"):
        take_over(module, diversity="entropy", samples=3)
    hypernet.samples = 5
    assert take_over(module).samples == 5
    given = take_over(BoringModel(), samples=3, diversity="entropy")
    assert given.samples == 3


def test_a_checkpoint_tells_how_many_networks_a_step_drew(tmp_path):
    def trained(epochs, checkpoint=None, **options):
        callback = HypernetCallback("layer", members=2, latent_dim=4, execution="loop", **options)
        short = {"max_epochs": epochs, "limit_train_batches": 1, "limit_val_batches": 0}
        trainer = pl.Trainer(**QUIET, **short, callbacks=[callback])
        trainer.fit(BoringModel(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "at.ckpt")
        return callback.hypernet

    assert trained(1, diversity="entropy").samples == 8
    loaded = Hypernet.from_checkpoint(tmp_path / "at.ckpt", nn.Linear(32, 2), name="layer")
    assert loaded.samples == 8
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert trained(2, tmp_path / "at.ckpt", diversity="entropy", samples=8).samples == 8
    assert not [one for one in told if "samples" in str(one.message)]
    with pytest.warns(UserWarning, match="the checkpoint was written with samples=8, not 2"):
        trained(3, tmp_path / "at.ckpt", samples=2, diversity="entropy")


class Spread(DiversityLoss):
    least_networks = 3

    def forward(self, population):
        return -population.gauged.var(0).mean()


@pytest.mark.parametrize(("components", "samples"), [(1, 3), (3, 6)])
def test_a_loss_of_a_plugin_says_how_many_networks_it_compares(monkeypatch, components, samples):
    assert take_over(BoringModel(), components=components, diversity={"spread": 1.0}, plugins=[Plugin()]).samples == samples
    monkeypatch.setattr(Spread, "least_networks", "some")
    with pytest.raises(ValueError, match="least_networks of 'spread' must be a whole number"):
        take_over(BoringModel(), diversity={"spread": 1.0}, plugins=[Plugin()])


class Plugin:
    @hookimpl
    def hypernet_register_diversity(self, register):
        register("spread", Spread)


def test_variance_sees_two_networks_of_every_component_of_a_preset():
    hypernet = take_over(BoringModel(), preset="deep_ensemble", diversity="variance")
    assert (hypernet.components, hypernet.samples) == (10, 20)
    counts = hypernet.train().training_population().latents.component.bincount()
    assert counts.tolist() == [2] * 10
