"""Losses without a gradient: the surrogate's gradient against the exact one, and who each value belongs to."""

import copy
import functools

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.generator import Generator
from tests.test_deal_batch import QUIET

NOISY = {"name": "noisy", "sigma": 1.0}
BOUND = 4.5
"""Standard errors that a mean may be away from zero, of some tens of coordinates."""


def hypernet(samples=4, **options):
    target = nn.Linear(3, 1).double()
    return Hypernet(
        target, **{"latent_dim": 2, "samples": samples, "distribution": NOISY, "execution": "loop", **options}
    ).train()


def trained(net):
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def flat(loss, net):
    found = torch.autograd.grad(loss, trained(net), retain_graph=True, allow_unused=True)
    pairs = zip(trained(net), found, strict=True)
    return torch.cat([(torch.zeros_like(one) if grad is None else grad).flatten() for one, grad in pairs])


def exact_error(net, latents, x, y, sizes):
    """The expected 0-1 error given the latents: the output of a Gaussian linear network is Gaussian."""
    means = Generator.forward(net.generator, latents)
    deviations = net.generator.deviations  # of the weight, and of the bias
    errors = []
    for index, (part, label) in enumerate(zip(x.split(sizes), y.split(sizes), strict=True)):
        mean = part @ means["weight"][index, 0] + means["bias"][index, 0]
        spread = (deviations[0].square() * part.square().sum(1) + deviations[1].square()).sqrt()
        errors.append(torch.special.ndtr(torch.where(label, -mean, mean) / spread))
    return torch.cat(errors).mean()


def away(differences):
    """How many standard errors the mean is away from zero at most, over the coordinates that vary and a common direction."""
    n = len(differences)
    errors = differences.std(0) / n**0.5
    varying = errors > 1e-12
    return (differences.mean(0)[varying] / errors[varying]).abs().max().item()


@functools.cache
def gradients(dealt, steps):
    """Estimated gradients by the name of the baseline and exact ones, ``(steps, numbers)``, of one hypernetwork at rest."""
    torch.manual_seed(0)
    net = hypernet()
    x = torch.randn(10, 3, dtype=torch.float64)  # ten examples for four networks: 3, 3, 2, 2
    y = x[:, 0] > 0.3
    found = {}
    for _ in range(steps):
        losses = {}
        if dealt:
            losses["auto"] = 0.0
            for part, share in net.deal((x, y)):
                losses["auto"] += share * net.surrogate(_errors(net, *part))
                latents = net.population.latents
        else:
            with net.step():
                errors, latents = _errors(net, x, y), net.population.latents
                losses |= {kind: net.surrogate(errors, kind) for kind in ("none", "leave_one_out", "moving_average")}
        losses["exact"] = exact_error(net, latents, x, y, [3, 3, 2, 2])
        for kind, loss in losses.items():
            found.setdefault(kind, []).append(flat(loss, net))
    return {kind: torch.stack(several) for kind, several in found.items()}


def _errors(net, x, y):
    return (net(x)[:, 0] > 0) != y


@pytest.mark.parametrize("steps", [100, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["none", "leave_one_out", "moving_average", "auto"])
def test_the_gradient_is_that_of_the_expected_error(kind, steps):
    found = gradients(kind == "auto", steps)
    estimates, exact = found[kind], found["exact"]
    along = exact.mean(0) / exact.mean(0).norm()

    def with_common(differences):
        return torch.cat([differences, (differences @ along)[:, None]], dim=1)

    assert away(with_common(estimates - exact)) < BOUND
    assert away(with_common(-estimates - exact)) > 1.5 * BOUND


def test_the_baselines_lower_the_variance():
    variances = {kind: found.var(0).sum().item() for kind, found in gradients(False, 100).items()}
    assert variances["leave_one_out"] < 0.8 * variances["none"]
    assert variances["moving_average"] < 0.8 * variances["none"]


def by_hand(net, population, values, sizes, constants):
    weights = {name: value.detach() for name, value in population.weights.items()}
    log_density = net.generator.log_density(population.latents, weights)
    means = [part.double().mean() for part in values.split(sizes)]
    terms = [size / len(values) * (mean - constant) * log
             for size, mean, constant, log in zip(sizes, means, constants, log_density, strict=False)]  # fmt: skip
    return sum(terms)


def test_uneven_parts_go_to_the_networks_that_saw_them():
    net = hypernet(samples=3)
    x, values = torch.randn(8, 3).double(), torch.rand(8).double()
    with net.step():
        seen = net(x)
        sizes = [3, 3, 2]
        each = net.executor.stacked(net.population.networks, net.executor.plans.arguments(net.target, (x,), {}))
        assert torch.equal(seen, torch.cat([out[part] for out, part in zip(each, _slices(sizes), strict=True)]))
        loss = net.surrogate(values)
        others = [(values.sum() - part.sum()) / (8 - len(part)) for part in values.split(sizes)]
        expected = by_hand(net, net.population, values, sizes, others)
        assert loss.item() == pytest.approx(values.mean().item(), abs=1e-12)
        torch.testing.assert_close(flat(loss, net), flat(expected, net))


def _slices(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def test_several_calls_of_several_sizes():
    net = hypernet()
    with net.step():
        for size, sizes in ((8, [2, 2, 2, 2]), (6, [2, 2, 1, 1]), (3, [1, 1, 1]), (1, [1])):
            net(torch.randn(size, 3).double())
            values = torch.rand(size).double()
            loss = net.surrogate(values, "none")
            expected = by_hand(net, net.population, values, sizes, [0.0] * 4)
            torch.testing.assert_close(*(torch.autograd.grad(one, trained(net), retain_graph=True, allow_unused=True)[0]
                                         for one in (loss, expected)))  # fmt: skip
        with pytest.raises(ValueError, match=r"one for each example that was dealt out in this step, 8 or 6 or 3 or 1, not 5"):
            net.surrogate(torch.rand(5))
    with net.step():
        net(torch.randn(5, 3).double())
        with pytest.raises(ValueError, match="in this step, 5, not 8"):
            net.surrogate(torch.rand(8))


def test_networks_drawn_anew_within_a_step_have_their_own_density():
    net = hypernet()
    with net.step():
        for _ in range(2):
            net(torch.randn(8, 3).double())
            values = torch.rand(8).double()
            loss = net.surrogate(values, "none")
            expected = by_hand(net, net.population, values, [2, 2, 2, 2], [0.0] * 4)
            torch.testing.assert_close(flat(loss, net), flat(expected, net))
            net.population = None


def test_a_part_is_all_of_its_network():
    net = hypernet()
    for index, (part, _) in enumerate(net.deal(torch.randn(10, 3).double())):
        net(part)
        values = torch.rand(4)  # as many as the step makes of its part
        loss = net.surrogate(values, "none")
        expected = (
            values.double().mean()
            * net.generator.log_density(
                net.population.latents, {name: one.detach() for name, one in net.population.weights.items()}
            )[index]
        )
        torch.testing.assert_close(*(torch.autograd.grad(one, trained(net), retain_graph=True, allow_unused=True)[0]
                                     for one in (loss, expected)))  # fmt: skip


class Counted(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.losses = nn.Linear(3, 2), []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.model.surrogate(self.model(x).argmax(-1) != y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("deal", ["inputs", "batch"])
@pytest.mark.filterwarnings("ignore:.*num_workers.*")
def test_it_trains_under_the_callback_and_the_checkpoint_keeps_the_average(deal, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32)

    def callback():
        return HypernetCallback(deal=deal, distribution={"name": "noisy", "sigma": 0.3}, samples=3, latent_dim=4)

    module, first = Counted(), callback()
    trainer = pl.Trainer(max_epochs=20, callbacks=[first], **QUIET)
    trainer.fit(module, loader)
    assert sum(module.losses[-10:]) < sum(module.losses[:10])
    average = first.hypernet.averages["values"]
    calls = 40 if deal == "inputs" else 120
    assert average.state()["count"] == calls
    assert 0 < average.value < 1
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Hypernet.from_checkpoint(tmp_path / "a.ckpt", nn.Linear(3, 2))
    assert loaded.averages["values"].state() == average.state()
    assert torch.equal(loaded.member_population().vectors, first.hypernet.eval().member_population().vectors)
    again, second = Counted(), callback()
    pl.Trainer(max_epochs=21, callbacks=[second], **QUIET).fit(again, loader, ckpt_path=tmp_path / "a.ckpt")
    assert second.hypernet.averages["values"].state()["count"] == calls * 21 // 20
    assert copy.deepcopy(second.hypernet).averages["values"].value == second.hypernet.averages["values"].value


def test_each_name_has_an_average_of_its_own():
    net = hypernet()
    with net.step():
        net(torch.randn(8, 3).double())
        net.surrogate(torch.ones(8), name="one")
        net.surrogate(torch.full((8,), 3.0), name="three")
    assert {name: average.value for name, average in net.averages.items()} == pytest.approx({"one": 1.0, "three": 3.0})


def in_step(values, **options):
    net = hypernet()
    with net.step():
        net(torch.randn(8, 3).double())
        net.surrogate(values(torch.ones(8)), **options)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        (lambda one: one[:7], {}, ValueError, "one for each example that was dealt out in this step, 8, not 7"),
        (lambda one: one.mean(), {}, ValueError, r"values must be \(batch,\), one for each example, not \(\)"),
        (lambda one: one[:, None], {}, ValueError, r"not \(8, 1\)"),
        (lambda one: one[:0], {}, ValueError, r"not \(0,\)"),
        (lambda one: one.requires_grad_(), {}, ValueError, "the values have a gradient"),
        (lambda one: one / 0 - one / 0, {}, ValueError, "the values hold NaN"),
        (lambda one: one / 0, {}, ValueError, "the values hold infinite numbers"),
        (lambda one: one.to(torch.cfloat), {}, ValueError, "real numbers"),
        (lambda one: one.tolist(), {}, TypeError, r"the values of surrogate\(\) must be a tensor"),
        (lambda one: one, {"baseline": "leave_one"}, ValueError, "did you mean 'leave_one_out'"),
        (lambda one: one, {"name": 3}, TypeError, "name must be a text"),
    ],
)
def test_values_that_are_none(values, options, error, message):
    with pytest.raises(error, match=message):
        in_step(values, **options)


def test_it_needs_a_step_of_training():
    net = hypernet()
    with pytest.raises(RuntimeError, match="needs the networks of a training step"):
        net.surrogate(torch.ones(8))
    net(torch.randn(8, 3).double())
    with pytest.raises(RuntimeError, match="needs the networks of a training step"):
        net.surrogate(torch.ones(8))
    with net.step(), pytest.raises(RuntimeError, match="call the target first"):
        net.surrogate(torch.ones(8))
    with net.eval().step(), pytest.raises(RuntimeError, match="evaluation mode"):
        net.surrogate(torch.ones(8))


def test_it_needs_a_density():
    net = hypernet(distribution="generator")
    with net.step():
        net(torch.randn(8, 3).double())
        with pytest.raises(RuntimeError, match="distribution='generator' does not know it: set distribution={'name': 'noisy'"):
            net.surrogate(torch.ones(8))


def test_leave_one_out_needs_others():
    net = hypernet()
    for part, _ in net.deal(torch.randn(8, 3).double()):
        net(part)
        with pytest.raises(ValueError, match="take baseline='moving_average'"):
            net.surrogate(torch.ones(2), "leave_one_out")
        break
