"""Priors, extractors, weight distributions, gauges, backends, losses and filter rules of a package that nobody here knows."""

import copy
import math
import sys
import threading

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel as CliModule
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Gauge, GeneratorConfig, Hypernet, HypernetCallback, Latents, hookimpl
from lightning_hypernet.generator import DistributionPrior, MixturePrior, NormalPrior, Prior, UniformPrior
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.target.backends import Loop
from tests.test_callback import QUIET, Classifier, data
from tests.test_plugins import install  # noqa: F401

ACME = '''
import torch
from torch import nn

from lightning_hypernet import Backend, DiversityLoss, Extractor, Gauge, Prior, WeightDistribution, hookimpl
from lightning_hypernet.target.backends import Loop
from lightning_hypernet.target.filters import Slot


class LaplacePrior(Prior):
    """Independent numbers of a Laplace distribution."""

    def __init__(self, latent_dim, components=1, scale=1.0):
        super().__init__(latent_dim, components)
        self.laplace = torch.distributions.Laplace(0.0, scale)

    def sample(self, component):
        return self.laplace.sample((len(component), self.latent_dim))

    def log_prob(self, latents):
        return self.laplace.log_prob(latents.z).sum(1)


class SharedExtractor(Extractor):
    """One code for all filters."""

    def __init__(self, latent_dim, filters, config, width=3):
        super().__init__(latent_dim, filters, config)
        self.width = width
        self.head = nn.Linear(latent_dim, config.code_size)

    def forward(self, latents):
        code = self.head(latents.z)
        return code[:, None].expand(-1, sum(self.filters), -1)


class Cloud(WeightDistribution):
    """Gaussian noise around the target's own weights, through z."""

    def __init__(self, setting, spread=0.1):
        super().__init__()
        self.spread, self.shapes = spread, setting.banks.shapes
        self.means = nn.ParameterList([value.detach().clone() for value in setting.initial.values()])
        self.maps = nn.ParameterList([torch.randn(setting.latent_dim, value.numel()) for value in setting.initial.values()])

    def forward(self, latents):
        return {
            name: mean + self.spread * (latents.z @ through).reshape(-1, *self.shapes[name])
            for name, mean, through in zip(self.shapes, self.means, self.maps)
        }

    def log_density(self, latents, weights):
        return -weights["bias"].square().sum(1)


class Halved(Gauge):
    """Half of every weight."""

    def __init__(self, symmetries, share=0.5):
        self.share = share

    def __call__(self, weights):
        return {name: value * self.share for name, value in weights.items()}


class Counting(Backend):
    """The loop, which counts its runs."""

    runs = 0

    def __init__(self, step=1):
        self.step = step

    def run(self, networks, arguments, method="forward", chunk_size=None):
        Counting.runs += self.step
        return Loop().run(networks, arguments, method)


class Near(DiversityLoss):
    def forward(self, population):
        return -population.gauged.var(0).mean()


class Shelf(nn.Module):
    def __init__(self):
        super().__init__()
        self.books = nn.Parameter(torch.randn(32, 2))

    def forward(self, x):
        return x @ self.books


@hookimpl
def hypernet_register_priors(register):
    register("acme_laplace", LaplacePrior)


@hookimpl
def hypernet_register_extractors(register):
    register("acme_shared", SharedExtractor)


@hookimpl
def hypernet_register_distributions(register):
    register("acme_cloud", Cloud)


@hookimpl
def hypernet_register_gauges(register):
    register("acme_halved", Halved)


@hookimpl
def hypernet_register_backends(register):
    register("acme_counting", Counting)


@hookimpl
def hypernet_register_diversity(register):
    register("acme_near", Near)


@hookimpl
def hypernet_register_filters(register):
    register(Shelf, lambda module: [[Slot("books", shape=(32, 2), view=(32, 2), axes=(1,))]])


@hookimpl
def hypernet_register_generators(register):
    register("acme_small", {"hidden": (4,), "extractor_hidden": (4,)})


@hookimpl
def hypernet_register_presets(register):
    register("acme_way", {"samples": 2, "members": 2})
'''

CONFIG = """
trainer:
  max_steps: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  accelerator: cpu
  limit_val_batches: 0
  callbacks:
    - class_path: lightning_hypernet.HypernetCallback
      init_args:
        target: layer
        preset: acme_way
        diversity: {acme_near: 0.1}
        prior: {name: acme_laplace, scale: 2.0}
        gauge: {name: acme_halved, share: 0.25}
        execution: {name: acme_counting, step: 2}
"""
WITH_EXTRACTOR = "        generator: {preset: acme_small, code_size: 5, extractor: {name: acme_shared, width: 4}}\n"
WITH_DISTRIBUTION = "        distribution: {name: acme_cloud, spread: 0.5}\n"


@pytest.mark.parametrize("rest", [WITH_EXTRACTOR, WITH_DISTRIBUTION])
def test_a_package_of_its_own_is_trained_by_name_and_loaded_again(install, tmp_path, monkeypatch, rest):  # noqa: F811
    install("acme", ACME)
    (tmp_path / "config.yaml").write_text(CONFIG + rest)
    monkeypatch.setattr(sys, "argv", ["main", "fit", "--config", str(tmp_path / "config.yaml")])
    cli = LightningCLI(CliModule, save_config_callback=None)
    acme = sys.modules["acme_module"]
    (callback,) = [one for one in cli.trainer.callbacks if isinstance(one, HypernetCallback)]
    hypernet = callback.hypernet
    assert (hypernet.samples, len(hypernet.members)) == (2, 2)
    assert type(hypernet.prior) is acme.LaplacePrior
    assert hypernet.prior.laplace.scale == 2.0
    assert type(hypernet.executor.backend) is acme.Counting
    assert acme.Counting.runs > 0
    assert acme.Counting.runs % 2 == 0
    population = hypernet.sample(3)
    assert torch.allclose(population.gauged, 0.25 * population.vectors)
    latents = population.latents
    expected = torch.distributions.Laplace(0.0, 2.0).log_prob(latents.z).sum(1)
    assert torch.allclose(hypernet.prior.log_prob(latents), expected, atol=1e-4)
    weights = population.weights
    if rest is WITH_DISTRIBUTION:
        assert torch.equal(hypernet.generator.log_density(latents, weights), -weights["bias"].square().sum(1))
    else:
        with pytest.raises(NotImplementedError, match="Generator does not know the density of its weights"):
            hypernet.generator.log_density(latents, weights)
    assert callback.hypernet.diversity.weights == {"acme_near": 0.1}
    if rest is WITH_EXTRACTOR:
        extractor = hypernet.generator.extractor
        assert (type(extractor), extractor.width, extractor.code_size) == (acme.SharedExtractor, 4, 5)
    else:
        assert (type(hypernet.generator), hypernet.generator.spread) == (acme.Cloud, 0.5)
    path = tmp_path / "trained.ckpt"
    cli.trainer.save_checkpoint(path)
    x = torch.randn(5, 32)
    loaded = Hypernet.from_checkpoint(path, CliModule().layer)
    assert torch.allclose(loaded(x), hypernet.eval()(x), atol=1e-6)
    assert loaded.options == hypernet.options
    monkeypatch.setenv("LIGHTNING_HYPERNET_PLUGINS", "")
    with pytest.raises(
        ValueError, match=r"needs the plug-in acme for .*prior='acme_laplace': LIGHTNING_HYPERNET_PLUGINS leaves"
    ):
        Hypernet.from_checkpoint(path, CliModule().layer)
    with pytest.raises(
        ValueError, match=r"unknown prior 'acme_laplace'; there are .*; a plug-in that brings it may be missing"
    ):
        Hypernet(nn.Linear(3, 2), prior="acme_laplace")


def test_a_layer_of_a_package_is_split_by_its_rule(install, tmp_path, monkeypatch):  # noqa: F811
    install("acme", ACME)
    Plugins()
    shelf = sys.modules["acme_module"].Shelf()
    hypernet = Hypernet(shelf)
    assert hypernet.banks.filters == 2
    assert hypernet.needs == [("target", "acme_module.Shelf", "acme")]
    assert "no rule" not in hypernet.summary()
    module, again = Classifier(), Classifier()
    for one in (module, again):
        one.model = nn.Sequential(nn.Linear(4, 32), sys.modules["acme_module"].Shelf(), nn.Linear(2, 3))
    callback = HypernetCallback(samples=2, members=2)
    trainer = pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, callbacks=[callback])
    trainer.fit(module, data())
    path = tmp_path / "at.ckpt"
    trainer.save_checkpoint(path)
    x = torch.randn(5, 4)
    assert torch.allclose(Hypernet.from_checkpoint(path, again.model)(x), callback.hypernet.eval()(x), atol=1e-6)
    monkeypatch.setenv("LIGHTNING_HYPERNET_PLUGINS", "")
    with pytest.raises(ValueError, match=r"the plug-in acme for target='acme_module.Shelf': LIGHTNING_HYPERNET_PLUGINS leaves"):
        Hypernet.from_checkpoint(path, again.model)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return x @ self.table


@pytest.mark.filterwarnings("ignore:no gauge is fixed")
def test_parameters_without_a_rule_are_marked():
    summary = Hypernet(nn.Sequential(Table(), nn.Linear(3, 2))).summary()
    assert "0.table *" in summary
    assert "* no rule reads these parameters, so that each is one filter" in summary
    assert "1.weight *" not in summary


# Priors


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (NormalPrior(3, 2), lambda z, k: torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)),
        (UniformPrior(3, 2), lambda z, k: torch.distributions.Uniform(-1.0, 1.0).log_prob(z).sum(1)),
        (MixturePrior(3, 2, separation=4.0), None),
        (
            DistributionPrior(3, 2, "Laplace", loc=1.0, scale=2.0),
            lambda z, k: torch.distributions.Laplace(1.0, 2.0).log_prob(z).sum(1),
        ),
        (
            DistributionPrior(3, 2, torch.distributions.MultivariateNormal(torch.zeros(3), 2 * torch.eye(3))),
            lambda z, k: torch.distributions.MultivariateNormal(torch.zeros(3), 2 * torch.eye(3)).log_prob(z),
        ),
    ],
)
def test_priors_know_their_densities(prior, expected):
    latents = prior.draw(50)
    assert latents.z.shape == (50, 3)
    assert sorted(latents.component.bincount().tolist()) == [25, 25]
    if expected is None:
        expected = lambda z, k: torch.distributions.Normal(prior.mean[k], prior.log_std[k].exp()).log_prob(z).sum(1)  # noqa: E731
    assert torch.allclose(prior.log_prob(latents), expected(latents.z, latents.component) - math.log(2), atol=1e-5)
    assert set(prior.draw(4, component=1).component.tolist()) == {1}


def test_a_prior_outside_of_its_support_and_one_without_a_density():
    assert UniformPrior(2).log_prob(Latents(torch.tensor([[2.0, 0.0]]), torch.zeros(1).long())) == -math.inf

    class Silent(Prior):
        def sample(self, component):
            return torch.zeros(len(component), self.latent_dim)

    with pytest.raises(NotImplementedError, match="Silent does not know its density; choose a prior with log_prob"):
        Silent(2).log_prob(Silent(2).draw(3))


def test_a_mixture_is_trained():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 2), prior={"name": "mixture", "separation": 2.0}, components=2, samples=4)
    hypernet(torch.randn(8, 3)).square().sum().backward()
    assert hypernet.prior.mean.grad.abs().sum() > 0
    assert torch.equal(copy.deepcopy(hypernet).draw(5).z, hypernet.draw(5).z)
    hypernet.eval()
    before = hypernet.member_population().latents
    with torch.no_grad():
        hypernet.prior.mean += 100
    after = hypernet.member_population().latents
    assert torch.allclose(after.z, before.z + 100, atol=1e-4)  # members follow the prior, with the same random numbers
    assert torch.equal(after.component, before.component)
    with pytest.raises(ValueError, match=r"components must lie in 0 to 1, not \[5\]"):
        hypernet.sample(3, component=5)


# Names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "norml"}, "unknown prior 'norml'; did you mean 'normal'"),
        ({"gauge": "scales"}, "unknown gauge 'scales'; did you mean 'scale'"),
        ({"execution": "lop"}, "unknown backend 'lop'; did you mean 'loop'"),
        ({"distribution": "generators"}, "unknown weight distribution 'generators'; did you mean 'generator'"),
        ({"generator": "compakt"}, "unknown preset of generators 'compakt'; did you mean 'compact'"),
        ({"generator": {"extractor": "mpl"}}, "unknown extractor 'mpl'; did you mean 'mlp'"),
        ({"prior": NormalPrior(3)}, "the prior draws 3 numbers for 1 components, and the Hypernet has latent_dim=64"),
        ({"prior": {"name": "torch", "distribution": "Nothing"}}, "torch.distributions has no distribution 'Nothing'"),
    ],
)
def test_unknown_names_suggest_the_nearest(options, message):
    with pytest.raises(ValueError, match=message):
        Hypernet(nn.Linear(3, 2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": {"name": "normal", "width": 2}}, "the prior .* does not take these options: .*width"),
        ({"prior": {"scale": 2}}, "a prior is chosen by its name, or by a mapping with a 'name' and options, not by"),
        ({"generator": {"code": 3}}, "generator has no option code; did you mean 'code_size'"),
        ({"generator": ["compact"]}, "generator must be the name of a preset, a mapping or a GeneratorConfig, not"),
        ({"distribution": {"name": "generator", "depth": 3}}, "the weight distribution .* does not take these options"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(TypeError, match=message):
        Hypernet(nn.Linear(3, 2), **options)


def test_presets_of_generators():
    for name, config in (("compact", GeneratorConfig.compact()), ("paper_mnist", GeneratorConfig.paper("mnist"))):
        target = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        by_name = Hypernet(target, generator=name).options["generator"]
        assert by_name == Hypernet(target, generator=config).options["generator"]
    changed = Hypernet(nn.Linear(3, 2), generator={"preset": "compact", "code_size": 3}).options["generator"]
    assert (changed["code_size"], changed["extractor"]) == (3, "matrix")


def test_no_name_is_a_preset_of_both_kinds():
    class Both:
        @hookimpl
        def hypernet_register_presets(self, register):
            register("compact", {})

    with pytest.raises(ValueError, match="compact would be a preset of generators and of the callback"):
        Plugins([Both()])
    assert not set(Plugins().generators) & set(Plugins().presets)


def test_presets_of_the_callback():
    callback = HypernetCallback(preset="deep_ensemble", samples=20)
    assert callback.hypernet_options == {"components": 10, "samples": 20}
    with pytest.raises(ValueError, match="unknown preset of the callback 'deep_ensembel'; did you mean 'deep_ensemble'"):
        HypernetCallback(preset="deep_ensembel")


@pytest.mark.parametrize(
    "options",
    [
        {"prior": torch.distributions.Normal(0.0, 2.0)},
        {"gauge": type("Mine", (Gauge,), {"__call__": lambda self, weights: weights})()},
        {"prior": {"name": "torch", "distribution": torch.distributions.Normal(0.0, 2.0)}},
    ],
)
def test_what_has_no_name_is_refused_when_it_is_saved(options, tmp_path):
    module = Classifier()
    trainer = pl.Trainer(**QUIET, max_steps=1, limit_val_batches=0, callbacks=[HypernetCallback(samples=2, **options)])
    trainer.fit(module, data())
    with pytest.raises(
        ValueError, match=rf"the {next(iter(options))}(.distribution)? of the target 'model' can't be stored.*register it with"
    ):
        trainer.save_checkpoint(tmp_path / "at.ckpt")


# Conditions


class OfTheContext(pl.LightningModule):
    """Learns the linear map whose weights are a given function of the condition."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(3, 2)
        self.map = torch.linspace(-1, 1, 16).reshape(2, 8)

    def wanted(self, context):
        return torch.tanh(context @ self.map) + 0.5 * context[..., :1]

    def training_step(self, batch, batch_idx):
        outputs = self.model(batch[0])
        wanted = self.wanted(self.model.population.latents.context)
        parts = zip(batch[0].split(4), wanted, strict=True)
        expected = [nn.functional.linear(x, weights[:6].reshape(2, 3), weights[6:]) for x, weights in parts]
        return (outputs - torch.cat(expected)).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.slow
def test_weights_that_are_a_function_of_the_context_are_learnt():
    pl.seed_everything(0, verbose=False)
    module = OfTheContext()
    callback = HypernetCallback(context_dim=2, context=lambda batch: batch[1][:16], samples=16)
    x, contexts = torch.randn(6400, 3), torch.rand(6400, 2) * 2 - 1
    loader = DataLoader(TensorDataset(x, contexts), 64, shuffle=True)
    trainer = pl.Trainer(**QUIET, max_steps=4000, max_epochs=-1, callbacks=[callback])
    trainer.fit(module, loader)
    context = torch.rand(200, 2) * 2 - 1
    population = callback.hypernet.sample(200, context=context)
    wanted = module.wanted(context)
    found = torch.cat([population.weights["weight"].flatten(1), population.weights["bias"]], 1)
    assert (found - wanted).square().sum().sqrt() < 0.01 * wanted.square().sum().sqrt()


def test_a_context_changes_nothing_at_the_start():
    found = []
    for context_dim in (0, 2):
        torch.manual_seed(0)
        hypernet = Hypernet(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), context_dim=context_dim, components=2)
        options = {"context": torch.randn(2)} if context_dim else {}
        found.append(hypernet.sample(5, **options).vectors)
    assert torch.allclose(*found, atol=1e-6)


def test_conditions_reach_steps_samples_members_and_ensembles(tmp_path):
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 2), context_dim=2, samples=4, members=3)
    with torch.no_grad():
        for right in hypernet.generator.conditioner.right:
            right.normal_()
    x = torch.randn(8, 3)
    with hypernet.step(context=torch.tensor([1.0, 2.0])):
        hypernet(x)
        with hypernet.step():
            hypernet(x)
        assert hypernet.population.latents.context.tolist() == [[1.0, 2.0]] * 4
    with hypernet.step(context=torch.arange(8.0).reshape(4, 2)):
        hypernet(x)
        assert hypernet.population.latents.context.flatten().tolist() == list(range(8))
    one, other = hypernet.sample(3, context=torch.zeros(2)), hypernet.sample(3, context=torch.ones(2))
    assert not torch.allclose(hypernet.decode(one.latents.given(torch.ones(2))).vectors, one.vectors, atol=1e-3)
    assert one.latents[1:].context.shape == (2, 2)
    assert other.latents.context.tolist() == [[1.0, 1.0]] * 3
    hypernet.eval()
    before = hypernet(x).detach()
    assert torch.equal(hypernet.member_context, torch.zeros(3, 2))
    hypernet.member_context = torch.tensor([3.0, -3.0])
    assert not torch.allclose(hypernet(x), before, atol=1e-3)
    again = Hypernet(nn.Linear(3, 2), context_dim=2, members=3)
    again.load_state_dict(hypernet.state_dict())
    assert torch.allclose(again.eval()(x), hypernet(x), atol=1e-6)
    ensemble = hypernet.ensemble(4, context=torch.tensor([1.0, 0.0]))
    assert ensemble.latents.context.tolist() == [[1.0, 0.0]] * 4
    with pytest.raises(ValueError, match=r"the context must be \(2,\) or \(3, 2\), not \(3,\)"):
        hypernet.sample(3, context=torch.zeros(3))
    with pytest.raises(ValueError, match=r"the members' context must be \(3, 2\) or \(2,\), not \(4,\)"):
        hypernet.member_context = torch.zeros(4)
    with pytest.raises(ValueError, match=r"the context must be \(0,\) or .*context_dim says"):
        Hypernet(nn.Linear(3, 2)).sample(2, context=torch.zeros(2))


def test_a_condition_that_comes_too_late_or_to_the_wrong_place_is_refused():
    hypernet = Hypernet(nn.Linear(3, 2), context_dim=2, samples=4)
    x = torch.randn(8, 3)
    with hypernet.step(), hypernet.step(context=torch.ones(2)):
        hypernet(x)
        assert hypernet.population.latents.context.tolist() == [[1.0, 1.0]] * 4
        with (
            pytest.raises(RuntimeError, match="the networks of this step are drawn already"),
            hypernet.step(context=torch.zeros(2)),
        ):
            pass
    with hypernet.step():
        with hypernet.step(context=torch.ones(2)):
            pass
        hypernet(x)
        assert hypernet.population.latents.context.tolist() == [[0.0, 0.0]] * 4  # that step is over
    with (
        pytest.raises(RuntimeError, match="every member has a condition of its own: set member_context"),
        hypernet.eval().step(context=torch.ones(2)),
    ):
        pass
    hypernet.member_context = [1.0, 2.0]
    assert hypernet.member_context.tolist() == [[1.0, 2.0]] * 10
    latents = Hypernet(nn.Linear(3, 2)).draw(3)
    with pytest.raises(ValueError, match=r"conditions must be \(3, 0\), not \(3, 5\)"):
        Hypernet(nn.Linear(3, 2)).decode(latents.given(torch.ones(5)))
    with pytest.raises(ValueError, match="context_dim must be 0 or more, not -1"):
        Hypernet(nn.Linear(3, 2), context_dim=-1)


class OpensAStep(Classifier):
    """Gives the condition itself, or leaves that to the callback; notes what its networks had."""

    def __init__(self, own):
        super().__init__()
        self.own, self.seen = own, []

    def training_step(self, batch, batch_idx):
        with self.model.step(context=torch.tensor([3.0, 4.0]) if self.own else None):
            loss = super().training_step(batch, batch_idx)
            self.seen.append(self.model.population.latents.context.tolist())
        return loss


@pytest.mark.parametrize("own", [True, False])
def test_the_callback_gives_the_condition_of_a_batch_or_lets_the_step_give_it(own):
    module = OpensAStep(own)
    context = None if own else lambda batch: torch.tensor([3.0, 4.0])
    callback = HypernetCallback(samples=2, context_dim=2, context=context)
    trainer = pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, callbacks=[callback])
    trainer.fit(module, data())
    assert module.seen == [[[3.0, 4.0]] * 2] * 2


def test_a_condition_under_manual_optimization_is_the_steps_own():
    module = Classifier()
    module.automatic_optimization = False
    callback = HypernetCallback(samples=2, context_dim=2, context=lambda batch: torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"open hypernet.step\(context=...\) yourself"):
        pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, callbacks=[callback]).fit(module, data())


def test_objects_are_compared_by_identity_and_numbers_of_arrays_are_numbers():
    def plain(prior):
        return Hypernet(nn.Linear(3, 2), prior=prior).options["prior"]

    one, other = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.0, 50.0)
    assert plain(one) == plain(one)
    assert plain(one) != plain(other)
    assert plain({"name": "mixture", "separation": torch.tensor(4.0)}) == {"name": "mixture", "separation": 4.0}
    assert Hypernet(nn.Linear(3, 2), latent_dim=np.int64(8)).options["latent_dim"] == 8


def test_a_backend_made_from_the_loop_runs_and_is_shared_by_copies():
    class Locked(Loop):
        def __init__(self):
            self.lock, self.runs = threading.Lock(), 0

        def run(self, networks, arguments, method="forward", chunk_size=None):
            self.runs += 1
            return super().run(networks, arguments, method)

    class Plugin:
        @hookimpl
        def hypernet_register_backends(self, register):
            register("locked", Locked)

    hypernet = Hypernet(nn.Linear(3, 2), execution="locked", plugins=[Plugin()])
    hypernet(torch.randn(8, 3))
    hypernet.ensemble(3)(torch.randn(8, 3))
    assert hypernet.executor.backend.runs == 2


def test_gauges_are_checked_when_they_are_chosen():
    with pytest.raises(TypeError, match="the gauge .* does not take these options: .*share"):
        Hypernet(nn.Linear(3, 2), gauge={"name": "scale", "share": 2})
    assert Hypernet(nn.Linear(3, 2), gauge={"name": "auto"}, execution={"name": "auto"}).options["gauge"] == "auto"

    class Plugin:
        @hookimpl
        def hypernet_register_gauges(self, register):
            register("plain", lambda symmetries: dict)

    hypernet = Hypernet(nn.Linear(3, 2), torch.zeros(2, 3), gauge="plain", plugins=[Plugin()])
    with pytest.raises(TypeError, match="a gauge must be made as an instance of Gauge, not type"):
        _ = hypernet.sample(2).gauged


def test_the_preset_for_finetuning_starts_every_component_from_the_targets_own_weights():
    module = BoringModel()
    before = {name: value.detach().clone() for name, value in module.layer.named_parameters()}
    callback = HypernetCallback("layer", preset="finetune", members=2)
    callback.setup(pl.Trainer(**QUIET, callbacks=[callback]), module, "fit")
    hypernet = callback.hypernet
    assert (hypernet.components, hypernet.samples) == (3, 3)
    for component in range(3):
        weights = hypernet.sample(4, component).weights
        for name, value in before.items():
            distance = (weights[name].detach() - value).norm() / value.norm() / 2
            assert distance < 0.05, name


def test_the_preset_that_reproduces_the_paper_fits_any_target_and_takes_its_own_widths_for_mnist():
    callback = HypernetCallback("layer", preset="reproduce", members=2)
    pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, callbacks=[callback]).fit(BoringModel())
    hypernet = callback.hypernet
    assert (hypernet.samples, hypernet.prior.latent_dim, type(hypernet.prior).__name__) == (32, 300, "UniformPrior")
    assert hypernet.generator.mean_codes is None and set(hypernet.diversity.losses) == {"entropy"}
    asked = HypernetCallback(preset="reproduce", generator="paper_mnist").hypernet_options
    assert asked["generator"] == "paper_mnist" and asked["samples"] == 32
    assert (hypernet.options["gauge"], hypernet.options["generator"]["hidden"]) == ("auto", [100, 100])


def test_what_a_callback_makes_of_a_preset_is_its_own():
    callback = HypernetCallback(preset="reproduce")
    callback.hypernet_options["generator"]["hidden"] = [7]
    callback._diversity["entropy"] = 0.5
    other = HypernetCallback(preset="reproduce")
    assert other.hypernet_options["generator"]["hidden"] == [100, 100]
    assert other._diversity == {"entropy": 1e-3}


def test_a_preset_is_not_changed_by_defaults_in_the_form_of_yaml():
    class Plugin:
        @hookimpl
        def hypernet_register_presets(self, register):
            register("weights_alone", {"generate": ["weight"], "exclude": ["bias"]})

    callback = HypernetCallback(preset="weights_alone", plugins=[Plugin()], generate=["*"], exclude=[])
    assert (callback.hypernet_options["generate"], callback.hypernet_options["exclude"]) == (["weight"], ["bias"])


def test_a_checkpoint_needs_what_was_used_and_nothing_else(install, tmp_path, monkeypatch):  # noqa: F811
    install("acme", ACME)
    trainer = pl.Trainer(
        **QUIET, max_steps=1, limit_val_batches=0, callbacks=[HypernetCallback(samples=2, prior="acme_laplace")]
    )
    trainer.fit(Classifier(), data())
    path = tmp_path / "at.ckpt"
    trainer.save_checkpoint(path)
    given = sys.modules["acme_module"]
    assert Hypernet.from_checkpoint(path, Classifier().model, plugins=[given]).options["prior"] == "acme_laplace"
    monkeypatch.setenv("LIGHTNING_HYPERNET_PLUGINS", "")
    assert Hypernet.from_checkpoint(path, Classifier().model, plugins=[given]).options["prior"] == "acme_laplace"
    assert Hypernet.from_checkpoint(path, Classifier().model, prior="normal").options["prior"] == "normal"
    monkeypatch.delenv("LIGHTNING_HYPERNET_PLUGINS")
    (tmp_path / "acme_module.py").write_text("raise RuntimeError('no disk')")
    monkeypatch.delitem(sys.modules, "acme_module")
    with pytest.raises(ValueError, match="needs the plug-in acme for prior='acme_laplace': it failed: no disk"):
        Hypernet.from_checkpoint(path, Classifier().model)


@pytest.mark.parametrize("layer", [nn.Module, Table])
def test_an_installed_rule_serves_its_own_layers_alone(install, layer):  # noqa: F811
    install(
        "greedy",
        f"""
import torch
from lightning_hypernet import hookimpl
from {layer.__module__} import {layer.__name__}

class Own(torch.nn.Linear):
    pass

@hookimpl
def hypernet_register_filters(register):
    register(Own, lambda module: [])
    register({layer.__name__}, lambda module: [])
""",
    )
    plugins = Plugins()
    assert "greedy" in plugins.failed
    assert layer not in plugins.rules
    linear = sys.modules["greedy_module"].Own(3, 2)
    assert Hypernet(linear).needs == []


def test_an_entry_point_named_as_a_built_in_takes_nothing_away(install):  # noqa: F811
    install("lightning_hypernet.generator", "", entry="json")
    plugins = Plugins()
    assert "normal" in plugins.priors
    assert "there is another plug-in of this name" in plugins.failed["lightning_hypernet.generator"]
