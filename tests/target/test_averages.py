"""Averages: a buffer is taken for a moving average only where it is one; else networks have what a plain pass leaves."""

import copy

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.target.averages import shares_of


class Rule(nn.Module):
    """Buffers that a function changes in training, of which the output reads the first, or what another function says."""

    def __init__(self, update, read=None, **buffers):
        super().__init__()
        self.update, self.read = update, read
        for name, value in buffers.items():
            self.register_buffer(name, value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.update(self, x.detach())
        return x + (next(self.buffers()).double() if self.read is None else self.read(self))


def lerp(rule, x, rate=0.1):
    rule.mean = rule.mean + rate * ((x.mean() if rule.mean.ndim == 0 else x.mean(0)) - rule.mean)


def anneal(rule, x):
    rule.tau.mul_(0.9).clamp_(min=0.1)


def adaptive(rule, x):
    rule.beta.mul_(1.5 if x.mean() > 0.2 else 1 / 1.5)


def root_of_squares(rule, x):
    rule.rms = (0.9 * rule.rms**2 + 0.1 * x.square().mean()).sqrt()


def least_squares(rule, x):
    rule.w += 0.02 * ((1 - rule.w * x) * x).mean()


def begun(rule, x):
    lerp(rule, x, 0.1 if rule.begun else 1.0)
    rule.begun.fill_(1)


def welford(rule, x):
    total = rule.count + x.numel()
    rule.mean = rule.mean + (x.mean() - rule.mean) * x.numel() / total
    rule.count = total


def by_step(rule, x):
    lerp(rule, x, 1 - min(0.99, (1 + rule.step.item()) / (10 + rule.step.item())))
    rule.step += 1


def debias(rule, x):
    lerp(rule, x)
    rule.step += 1


def patience(rule, x):
    loss = x.square().mean()
    rule.waited = torch.where(loss > rule.best, rule.waited + 1, torch.zeros_like(rule.waited))
    rule.best = torch.minimum(rule.best, loss)


def largest(rule, x):
    rule.largest = torch.maximum(rule.largest, x.abs().max() if rule.largest.ndim == 0 else x.abs().amax(0))


def clamped(rule, x):
    rule.mean = (0.9 * rule.mean + 5 * x.std()).clamp(0.05, 5)


def prototypes(rule, x):
    kind = (torch.arange(len(x)) > 3).long()  # the second is not in every batch
    for one in kind.unique():
        rule.mean[one] = 0.9 * rule.mean[one] + 0.1 * x[kind == one].mean()


def not_from_few(rule, x):
    if len(x) > 3:
        lerp(rule, x)


def by_size(rule, x):
    lerp(rule, x, len(x) / 100)


def last(rule, x):
    rule.mean = x.mean(0)


def every_second(rule, x):
    rule.step += 1
    if rule.step % 2 == 0:
        lerp(rule, x, 0.5)


def at_step_two(rule, x):
    rule.step += 1
    if rule.step == 2:
        rule.mean = x.mean(0)


def countdown(rule, x):
    rule.left -= 1
    if rule.left == 0:
        rule.mean = x.mean(0)


def dead_codes(rule, x):
    rule.usage = 0.5 * rule.usage + 0.5 * (x.mean(0) > 100)
    rule.dead = rule.usage < 0.3


def far(rule, x):
    lerp(rule, 100 * x)
    if rule.mean.abs().max() > 20:
        rule.far = rule.mean.clone()


def lagged(rule, x):
    rule.old = rule.mean.clone()
    lerp(rule, x)


VECTOR, ONE = torch.zeros(5, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
RULES = {
    "annealed": (anneal, {"tau": ONE + 1}),
    "annealed_numbers": (anneal, {"tau": VECTOR + 1}),
    "adaptive": (adaptive, {"beta": ONE + 1}),
    "root_of_squares": (root_of_squares, {"rms": ONE + 1}),
    "least_squares": (least_squares, {"w": ONE}),
    "begun": (begun, {"mean": ONE, "begun": ONE}),
    "welford": (welford, {"mean": ONE, "count": ONE + 1e-4}),
    "by_step": (by_step, {"mean": ONE, "step": ONE}),
    "debiased": (debias, {"mean": VECTOR, "step": ONE, "read": lambda rule: rule.mean / (1 - 0.9 ** rule.step.clamp(min=1))}),
    "patience": (patience, {"waited": ONE, "best": ONE + 1e3}),
    "largest": (largest, {"largest": ONE}),
    "largest_numbers": (lambda rule, x: largest(rule, 100 * x), {"largest": VECTOR}),
    "clamped": (clamped, {"mean": ONE + 1}),
    "prototypes": (prototypes, {"mean": VECTOR[:2], "read": lambda rule: rule.mean.sum()}),
    "not_from_few": (not_from_few, {"mean": VECTOR}),
    "by_size": (by_size, {"mean": VECTOR}),
    "last": (last, {"mean": VECTOR}),
    "every_second": (every_second, {"mean": VECTOR, "step": 0}),
    "at_step_two": (at_step_two, {"mean": VECTOR, "step": 0}),
    "countdown": (countdown, {"mean": VECTOR, "left": 2}),
    "dead_codes": (dead_codes, {"dead": torch.zeros(5, dtype=torch.bool), "usage": VECTOR + 1}),
    "far": (far, {"far": VECTOR, "mean": VECTOR}),
    "lagged": (lagged, {"old": VECTOR, "mean": VECTOR}),
}


def target(layer):
    return nn.Sequential(nn.Linear(3, 5), layer, nn.Tanh(), nn.Linear(5, 2)).double()


def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, generator=generator, dtype=torch.float64) * 2 + 1 for size in (6, 6, 3, 6)]


def means(network, inputs):
    """What the batches give a moving average behind the first layer, on average."""
    with torch.no_grad():
        return torch.stack([network[0](x).mean(0) for x in inputs]).mean(0)


def estimated(fresh):
    """Networks with statistics of their own, each beside the target with its weights as it was."""
    torch.manual_seed(0)
    hypernet = Hypernet(fresh, samples=1, members=2, execution="loop").train()
    for x in batches():
        hypernet(x)
    ensemble = hypernet.eval().ensemble(2)
    ensemble.update_statistics(batches())
    networks = ensemble.materialize()
    plain = [copy.deepcopy(fresh) for _ in networks]
    for one, network in zip(plain, networks, strict=True):
        one.load_state_dict(dict(network.named_parameters()), strict=False)
    return list(zip(networks, plain, strict=True))


@pytest.mark.filterwarnings("ignore:.*are no averages over batches")
@pytest.mark.parametrize("name", RULES)
def test_what_is_no_average_is_what_a_plain_pass_leaves(name):
    update, buffers = RULES[name]
    for network, plain in estimated(target(Rule(update, **buffers))):
        for x in batches():
            plain.train()(x)
        for path, buffer in plain.named_buffers():
            assert torch.allclose(network.get_buffer(path).double(), buffer.double(), rtol=0, atol=1e-12), path
        x = batches()[0]
        assert torch.allclose(network.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", [VECTOR, VECTOR - 3, ONE, ONE + 40])
@pytest.mark.parametrize("rate", [0.5, 0.1, 1e-3])
def test_a_moving_average_is_the_mean_of_what_the_batches_give(start, rate):
    """Wherever it starts, without a warning."""
    for network, plain in estimated(target(Rule(lambda rule, x: lerp(rule, x, rate), mean=start))):
        with torch.no_grad():
            each = [plain[0](x).mean(0) if start.ndim else plain[0](x).mean() for x in batches()]
        assert torch.allclose(network[1].mean, torch.stack(each).mean(0), rtol=0, atol=1e-9)


class OwnRate(nn.BatchNorm1d):
    """A batch norm that goes by a rate of its own, and counts."""

    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("examples", torch.tensor(0))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean(0), 0.3)
                self.examples += len(x)
        return x - self.running_mean


@pytest.mark.filterwarnings("ignore:1.examples of Sequential change in training")
def test_a_batch_norm_with_a_rate_and_a_count_of_its_own():
    for network, plain in estimated(target(OwnRate(5))):
        mean = means(plain, batches())
        assert torch.allclose(network[1].running_mean, mean, rtol=0, atol=1e-12)
        assert network[1].examples == 21


class Elsewhere(nn.Module):
    """Runs a batch norm's buffers without the batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        norm = self.norm
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, training=norm.training, momentum=0.2)


def test_a_batch_norm_that_another_module_runs():
    for network, plain in estimated(target(Elsewhere())):
        with torch.no_grad():
            each = [plain[0](x) for x in batches()]
        assert torch.allclose(network[1].norm.running_mean, torch.stack([one.mean(0) for one in each]).mean(0), atol=1e-12)
        assert torch.allclose(network[1].norm.running_var, torch.stack([one.var(0) for one in each]).mean(0), atol=1e-12)


class Normalised(nn.Module):
    """A moving average that training reads, before a batch norm."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.norm((x - self.mean).abs())


@pytest.mark.filterwarnings("ignore:1.mean of Sequential change in training")
def test_an_average_that_a_batch_norm_follows_is_what_that_was_run_with():
    for network, plain in estimated(target(Normalised())):
        plain[1].norm.momentum = None
        for x in batches():
            plain.train()(x)
        x = batches()[0]
        assert torch.allclose(network.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)


def test_what_was_frozen_at_first_is_looked_at_when_it_is_not():
    torch.manual_seed(0)
    hypernet = Hypernet(target(Rule(lerp, mean=VECTOR)), samples=1, members=1, execution="loop").train()
    hypernet.target[1].eval()
    hypernet(batches()[0])
    assert torch.equal(hypernet.eval().ensemble(1).materialize()[0][1].mean, VECTOR)
    hypernet.train()(batches()[0])
    network = hypernet.eval().ensemble(1).materialize()[0]
    with torch.no_grad():
        assert torch.allclose(network[1].mean, network[0](batches()[0]).mean(0), rtol=0, atol=1e-9)


def test_a_batch_norm_without_a_count():
    fresh = target(nn.BatchNorm1d(5))
    fresh[1].num_batches_tracked = None
    for network, plain in estimated(fresh):
        mean = means(plain, batches())
        assert torch.allclose(network[1].running_mean, mean, rtol=0, atol=1e-12)


def test_an_average_that_one_odd_pass_denies_is_one_in_the_next():
    torch.manual_seed(0)
    hypernet = Hypernet(target(Rule(not_from_few, mean=VECTOR)), samples=1, members=1, execution="loop").train()
    hypernet(batches()[0])
    ensemble = hypernet.eval().ensemble(1)
    with pytest.warns(UserWarning, match=r"1\.mean of Sequential change in training and are no averages"):
        ensemble.update_statistics(batches())
    few = [x for x in batches() if len(x) == 6]
    ensemble.update_statistics(few)
    (network,) = ensemble.materialize()
    mean = means(network, few)
    assert torch.allclose(network[1].mean, mean, rtol=0, atol=1e-9)


def test_shares():
    """Of an update the share is found exactly, and in single precision too."""
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        own = {"mean": torch.randn(4, dtype=dtype), "sum": torch.randn(4, dtype=dtype)}
        given = torch.randn(2, 4, dtype=dtype)

        def run(buffers, batch, own=own):
            start = {**own, **buffers}
            return {"mean": 0.99 * start["mean"] + 0.01 * batch, "sum": start["sum"] + batch}

        moved = {name: value + 1.5 for name, value in own.items()}
        runs = [lambda buffers, batch=batch: run(buffers, batch) for batch in given]
        shares = shares_of(*runs, own, runs[0]({}), runs[1]({}), moved)
        assert list(shares) == ["mean"]
        assert shares["mean"] == pytest.approx(0.99, abs=tolerance)
