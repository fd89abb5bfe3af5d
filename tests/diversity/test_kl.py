"""The divergence from a prior: against torch.distributions, closed forms and slow references."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.diversity import KL
from lightning_hypernet.diversity.entropy import entropy
from lightning_hypernet.training_step import examples_of


def hypernet(distribution="mean_field", **options):
    torch.manual_seed(0)
    return Hypernet(nn.Linear(3, 2).double(), distribution=distribution, samples=4, execution="loop", **options)


def vectors(population):
    return torch.cat([value.reshape(len(value), -1) for value in population.weights.values()], dim=1)


def test_the_divergence_of_a_mean_field_is_that_of_gaussians_in_expectation():
    net = hypernet({"name": "mean_field", "sigma": 1.0})
    generator = net.generator
    q = Independent(Normal(generator.mean, generator.log_std.exp()), 1)
    p = Independent(Normal(torch.zeros(8).double(), 0.7), 1)
    exact = kl_divergence(q, p) / 50
    for stl in (False, True):
        loss = KL(prior_scale=0.7, examples=50, stl=stl)
        values = torch.stack([loss(net.populate(net.draw(50))) for _ in range(40)])
        assert abs(values.mean() - exact) < 4 * values.std() / 40**0.5
    assert values.std() > 0


def test_priors_are_those_of_torch():
    net = hypernet()
    population = net.populate(net.draw(5))
    weights = vectors(population)
    expected = -net.generator.entropy() - Laplace(0.0, 0.3).log_prob(weights).sum(1).mean()
    torch.testing.assert_close(KL("laplace", 0.3, examples=7)(population), expected / 7)


def test_without_a_density_the_entropy_is_estimated_by_neighbours():
    net = hypernet("generator", latent_dim=3)
    population = net.populate(net.draw(6))
    weights = vectors(population)
    expected = -entropy(weights, 3) - Normal(0.0, 1.0).log_prob(weights).sum(1).mean()
    torch.testing.assert_close(KL(examples=10)(population), expected / 10)


def test_noise_around_a_generator_is_a_mixture():
    net = hypernet({"name": "noisy", "sigma": 0.3}, latent_dim=3).eval()
    population = net.populate(net.draw(6))
    latents = population.latents
    slow = torch.stack([
        torch.stack([
            net.generator.log_density(latents[j : j + 1], {k: v[i : i + 1] for k, v in population.weights.items()})[0]
            for j in range(6)
        ]).logsumexp(0) - math.log(6)
        for i in range(6)
    ])  # fmt: skip
    torch.testing.assert_close(net.generator.log_mixture(latents, population.weights), slow, rtol=0, atol=1e-8)
    expected = slow.mean() - Normal(0.0, 1.0).log_prob(vectors(population)).sum(1).mean()
    torch.testing.assert_close(KL(examples=1)(population), expected)


def test_the_mixture_lies_below_the_density_given_z_and_above_that_of_weights():
    """With a generator that is a Gaussian of z itself, all are known."""
    net = hypernet({"name": "noisy", "sigma": 0.3}, latent_dim=3).eval()
    population = net.populate(net.draw(400))
    mixture = net.generator.log_mixture(population.latents, population.weights).mean()
    given = net.generator.log_density(population.latents, population.weights).mean()
    few = torch.stack([
        net.generator.log_mixture(part, {k: v[i * 20 : i * 20 + 20] for k, v in population.weights.items()}).mean()
        for i, part in enumerate(population.latents[s : s + 20] for s in range(0, 400, 20))
    ]).mean()  # fmt: skip
    assert mixture < few < given


def test_gradients_that_stick_the_landing_vanish_where_q_is_the_posterior():
    """Two weights and an exact Gaussian posterior, which the distribution is set to."""
    x, y = torch.randn(2, 20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = y[:, 0]
    precision = torch.eye(2).double() + x.T @ x
    posterior = MultivariateNormal(torch.linalg.solve(precision, x.T @ y), precision_matrix=precision)
    net = Hypernet(nn.Linear(2, 1, bias=False).double(), distribution="full", samples=1, gauge="none", execution="loop")
    generator, lower = net.generator, posterior.scale_tril
    with torch.no_grad():
        generator.mean.copy_(posterior.mean)
        generator.log_std.copy_(lower.diagonal().log())
        generator.lower.copy_(lower[1, :1] / lower[1, 1])

    def gradient(stl):
        population = net.populate(net.draw(1))
        outputs = net.run(population, x)[0, :, 0]
        bound = Normal(outputs, 1.0).log_prob(y).sum() - 20 * KL(stl=stl, examples=20)(population)
        return torch.cat([one.flatten() for one in torch.autograd.grad(bound, list(generator.parameters()))])

    with torch.no_grad():  # T is in units of the row's own deviation
        torch.testing.assert_close(generator.distribution().covariance_matrix, posterior.covariance_matrix)
    assert torch.stack([gradient(True) for _ in range(5)]).abs().max() < 1e-10
    assert torch.stack([gradient(False) for _ in range(5)]).var(0).sum() > 1


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1, bias=False).double()
        self.log_noise = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.gradients = []

    def training_step(self, batch, batch_idx):
        return -Normal(self.model(batch[0])[:, 0], self.log_noise.exp()).log_prob(batch[1]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)

    def on_after_backward(self):
        self.gradients.append({name: one.grad.clone() for name, one in self.named_parameters() if one.grad is not None})


def whole(batch, n):
    return [batch] * n


def fitted(kl, samples=4, deal=whole, steps=1, distribution="mean_field", rows=12, **options):
    source = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(rows, 2, generator=source).double(), torch.randn(rows, generator=source).double())
    given = {"gauge": "none", "execution": "loop", **options}
    callback = HypernetCallback("model", distribution=distribution, diversity={"kl": kl}, samples=samples, deal=deal, **given)
    module = Regression()
    trainer = pl.Trainer(max_steps=steps, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader(data, rows))
    return module, callback, data


@pytest.mark.parametrize("stl", [False, True])
def test_the_importance_weighted_bound_and_its_gradients_are_those_of_a_slow_reference(stl):
    module, callback, data = fitted({"bound": "iwae", "k": 2, "stl": stl})
    x, y = data.tensors
    found = module.gradients[0]
    torch.manual_seed(0)
    again = Regression()
    net = Hypernet(again.model, distribution="mean_field", samples=4, gauge="none", execution="loop")
    net.prior.set_extra_state({"seed": callback.hypernet.prior.seed, "draws": 0})
    # the draws before the first step: the first latents, and the members
    net.prior.draw(1), net.prior.draw(10)
    z = net.prior.draw(4).z.double()
    generator = net.generator
    log_noise = torch.zeros((), dtype=torch.float64, requires_grad=True)
    weights = (generator.mean + generator.log_std.exp() * z).detach().requires_grad_()
    likelihood = torch.stack([Normal(x @ one, log_noise.exp()).log_prob(y).sum() for one in weights])

    def log_density(weights, mean, log_std):
        return Normal(mean, log_std.exp()).log_prob(weights).sum(1)

    prior = Normal(0.0, 1.0).log_prob(weights).sum(1)
    if stl:
        density = log_density(weights, generator.mean.detach(), generator.log_std.detach())
    else:
        density = log_density(weights, generator.mean, generator.log_std)
    log_weights = (likelihood + prior - density).view(2, 2)
    bound = (log_weights.logsumexp(1) - math.log(2)).mean()
    own = [generator.mean, generator.log_std]
    at_weights, at_noise, *direct = torch.autograd.grad(bound, [weights, log_noise, *own], allow_unused=True)
    if stl:  # doubly reparameterised: the shares squared, where the bound has them once
        at_weights = at_weights * log_weights.softmax(1).view(4, 1).detach()
    drawn = generator.mean + generator.log_std.exp() * z
    through = torch.autograd.grad(drawn, own, at_weights)
    expected = [one + (two if two is not None else 0) for one, two in zip(through, direct, strict=True)]
    torch.testing.assert_close(found["model.generator.mean"], -expected[0] / 12)
    torch.testing.assert_close(found["model.generator.log_std"], -expected[1] / 12)
    torch.testing.assert_close(found["log_noise"], -at_noise / 12)


def test_the_bound_of_one_network_is_the_evidence_lower_bound():
    one = fitted({"bound": "iwae", "stl": True}, samples=1)[0].gradients[0]
    other = fitted({"bound": "elbo", "stl": True}, samples=1)[0].gradients[0]
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])


def test_the_callback_counts_the_examples():
    _, callback, _ = fitted({}, deal="inputs", rows=12)
    assert callback.hypernet.diversity.losses["kl"].examples == 12
    _, callback, _ = fitted({"examples": 5}, deal="inputs", rows=12)
    assert callback.hypernet.diversity.losses["kl"].examples == 5


def test_a_number_of_examples_that_nobody_knows_is_asked_for():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(2).double(), torch.zeros(()).double()

    callback = HypernetCallback("model", distribution="mean_field", diversity="kl", samples=2)
    trainer = pl.Trainer(max_steps=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with pytest.raises(RuntimeError, match="'kl' failed: how many training examples there are is not known"):
        trainer.fit(Regression(), DataLoader(Endless(), 4))


def test_the_divergence_warms_up_and_goes_on_from_a_checkpoint():
    net = hypernet()
    population = net.populate(net.draw(3))
    full, warm = KL(examples=4)(population), KL(examples=4, warmup=4)
    torch.testing.assert_close(
        torch.stack([warm(population) for _ in range(5)]), full * torch.tensor([0.25, 0.5, 0.75, 1, 1]).double()
    )
    other = KL(examples=4, warmup=4)
    two = KL(examples=4, warmup=4)
    two(population)
    other.load_state_dict(two.state_dict())
    torch.testing.assert_close(other(population), full * 0.5)


@pytest.mark.parametrize("distribution", ["generator", "noisy", "mnf"])
def test_what_needs_a_density_is_refused_when_the_callback_is_built(distribution):
    with pytest.raises(ValueError, match="stl=True needs weights whose density is known exactly"):
        HypernetCallback("model", distribution=distribution, diversity={"kl": {"stl": True}})
    if distribution != "mnf":
        with pytest.raises(ValueError, match="bound='iwae' needs weights whose density is known"):
            HypernetCallback("model", distribution=distribution, diversity={"kl": {"bound": "iwae"}}, deal=whole)


def test_examples_are_those_that_loaders_draw():
    data = TensorDataset(torch.zeros(100, 2), torch.zeros(100))
    few = torch.utils.data.SubsetRandomSampler(range(20))
    batches = torch.utils.data.BatchSampler(few, 10, False)
    loaders = [
        (DataLoader(data, 10), 100), (DataLoader(data, 10, sampler=few), 20), (DataLoader(data, batch_sampler=batches), 20),
        (DataLoader(data, sampler=batches, batch_size=None), 20), (DataLoader([data[:16]] * 7, batch_size=None), None),
    ]  # fmt: skip
    for loader, expected in loaders:
        assert examples_of(SimpleNamespace(train_dataloader=loader, overfit_batches=0, world_size=1)) == expected
    assert examples_of(SimpleNamespace(train_dataloader=loaders[0][0], overfit_batches=2, world_size=1)) is None


def test_senseless_options_are_refused():
    with pytest.raises(ValueError, match="loss of every network on the whole batch"):
        HypernetCallback("model", distribution="mean_field", diversity={"kl": {"bound": "iwae"}}, deal="batch")
    with pytest.raises(ValueError, match="loss of every network"):
        HypernetCallback("model", distribution="mean_field", diversity={"kl": {"bound": "iwae"}})
    with pytest.raises(ValueError, match="set bound='iwae'"):
        KL(k=3)
    with pytest.raises(ValueError, match="'iwea'"):
        KL(bound="iwea")
    with pytest.raises(RuntimeError, match="k=3 networks in a bound do not divide the samples=4"):
        fitted({"bound": "iwae", "k": 3})


def test_two_passes_give_the_gradients_of_one():
    one, two = (
        fitted({}, deal="batch", distribution="generator", latent_dim=3, backward=backward)[0].gradients[0]
        for backward in ("one_pass", "two_pass")
    )
    assert set(one) == set(two) != set()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_a_training_goes_on_and_comes_back_from_its_checkpoint(tmp_path):
    distribution = {"name": "low_rank", "rank": 2}
    _, callback, data = fitted({"warmup": 4}, deal="inputs", steps=2, distribution=distribution)
    torch.manual_seed(0)
    module = Regression()
    again = HypernetCallback("model", distribution=distribution, diversity={"kl": {"warmup": 4}}, samples=4, gauge="none",
                             execution="loop")  # fmt: skip
    options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=2, callbacks=[again], enable_checkpointing=False, **options)
    trainer.fit(module, DataLoader(data, 12))
    trainer.save_checkpoint(tmp_path / "at.ckpt")
    found = Hypernet.from_checkpoint(tmp_path / "at.ckpt", Regression().model)
    for name, value in found.member_population().weights.items():
        torch.testing.assert_close(value, again.hypernet.eval().member_population().weights[name])
    assert found.latent_dim == 4
    assert found.options["distribution"] == distribution

    third = HypernetCallback("model", distribution=distribution, diversity={"kl": {"warmup": 4}}, samples=4, gauge="none",
                             execution="loop")  # fmt: skip
    trainer = pl.Trainer(max_steps=3, callbacks=[third], enable_checkpointing=False, **options)
    trainer.fit(Regression(), DataLoader(data, 12), ckpt_path=tmp_path / "at.ckpt")
    assert third.hypernet.diversity.losses["kl"].steps == 3
    assert callback.hypernet.diversity.losses["kl"].steps == 2


@pytest.mark.parametrize(
    "options",
    [{"name": "flow", "hidden": [60000, 60000]}, {"name": "low_rank", "rank": 10**9}, {"name": "mnf", "transforms": 10**9}],
)
def test_a_checkpoint_that_asks_for_more_than_it_holds_is_refused(tmp_path, options):
    module = Regression()
    callback = HypernetCallback("model", distribution=options["name"], samples=2, gauge="none")
    trainer = pl.Trainer(max_steps=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(4, 2).double(), torch.zeros(4).double()), 4))
    trainer.save_checkpoint(tmp_path / "at.ckpt")
    content = torch.load(tmp_path / "at.ckpt", weights_only=False)
    content["hypernet"]["model"]["options"]["distribution"] = options
    torch.save(content, tmp_path / "at.ckpt")
    with pytest.raises(ValueError, match="asks for more than|takes its noise"):
        Hypernet.from_checkpoint(tmp_path / "at.ckpt", Regression().model)


@pytest.mark.parametrize("distribution", ["mean_field", "low_rank", "full", "flow", "filter_norms", "mnf"])
def test_autocast_changes_neither_weights_nor_their_divergence(distribution):
    torch.manual_seed(0)
    net = Hypernet(nn.Linear(3, 2), distribution=distribution, samples=4, execution="loop").eval()
    latents = net.draw(4)
    loss = KL(examples=3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net.populate(latents)
        value = loss(rough)
    exact = net.populate(latents)
    for name, weights in exact.weights.items():
        assert torch.equal(weights, rough.weights[name])
    torch.testing.assert_close(value, loss(exact))


def test_half_precision_is_refused():
    net = Hypernet(nn.Linear(3, 2), distribution="mean_field", samples=4, execution="loop").bfloat16()
    population = net.sample(3)
    with pytest.raises(ValueError, match="a density needs single precision"):
        KL(examples=3)(population)
