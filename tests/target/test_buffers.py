"""Buffers: what networks can't have of their own is told, what harms nothing is not, and nothing of it stops a run."""

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from tests.target.test_averages import VECTOR, Rule, batches, estimated, lerp, means, target


class Twice(nn.Module):
    """One buffer under two names, written by the first and read by the second."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Module(), nn.Module()
        self.one.register_buffer("sum", torch.zeros(5))
        self.two.register_buffer("sum", self.one.sum)

    def forward(self, x):
        if self.training:
            self.one.sum.add_(x.detach().mean(0))
        return x + self.two.sum


@pytest.mark.filterwarnings("ignore:1.one.sum of Sequential change in training")
def test_a_buffer_of_two_names_stays_one():
    fresh = target(Twice())
    fresh[1].two.sum = fresh[1].one.sum  # to double precision, each was a tensor of its own
    for network, plain in estimated(fresh):
        for x in batches():
            plain.train()(x)
        x = batches()[0]
        assert torch.allclose(network.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:1.one.sum of Sequential change in training")
def test_a_buffer_of_two_names_stays_one_where_it_is_traced():
    torch.manual_seed(0)
    fresh = target(Twice())
    fresh[1].two.sum = fresh[1].one.sum
    hypernet = Hypernet(fresh, samples=1, members=2, execution="loop").train()
    hypernet(batches()[0])
    ensemble = hypernet.eval().ensemble(2)
    x = batches()[0]
    exported = torch.export.export(ensemble, (x,)).module()
    assert torch.allclose(exported(x), torch.stack([one.eval()(x) for one in ensemble.materialize()]).mean(0), atol=1e-12)


class Kept(nn.Module):
    """Evaluation reads how often it was trained, which is no buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.updates = 0

    def forward(self, x):
        if self.training:
            self.updates += 1
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean / (1 - 0.9 ** max(self.updates, 1))


def test_what_is_kept_beside_buffers_is_told_where_it_matters():
    with pytest.warns(UserWarning, match="what comes out of Sequential depends on what it keeps .* beside its buffers"):
        estimated(target(Kept()))


class Made(nn.Module):
    """Its buffer is made by the first batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", None)

    def forward(self, x):
        if self.training and self.center is None:
            self.center = x.detach().mean(0)
        return x if self.center is None else x - self.center


def test_a_buffer_that_training_makes_is_told():
    hypernet = Hypernet(target(Made()), samples=2).train()
    with pytest.warns(UserWarning, match=r"1\.center of Sequential become buffers in a run in training mode"):
        hypernet(batches()[0])


class Written(nn.Module):
    """A parameter that training writes to."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(5), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.mean.data.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


def test_a_parameter_that_a_run_writes_to_is_told():
    hypernet = Hypernet(target(Written()), samples=2, execution="loop").train()
    with pytest.warns(UserWarning, match=r"1\.mean of Sequential are parameters that are not generated"):
        hypernet(batches()[0])


class Membrane(nn.Module):
    """State of the size of a batch, begun anew where that is another one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(6, 5))

    def forward(self, x):
        if self.training:
            state = self.state if len(self.state) == len(x) else torch.zeros_like(x)
            self.state = 0.9 * state + x.detach()
        return x


@pytest.mark.filterwarnings("ignore:1.state of Sequential change")
def test_state_of_the_size_of_a_batch_stops_nothing():
    for network, _ in estimated(target(Membrane())):
        assert network[1].state.shape == (6, 5)


class Answers(nn.Module):
    """What it answers changes its kind from call to call."""

    def __init__(self):
        super().__init__()
        self.layer, self.before, self.log = nn.Linear(3, 2).double(), None, []
        self.register_buffer("mean", torch.zeros(2).double())

    def forward(self, x):
        y = self.layer(x)
        if self.training:
            self.mean.lerp_(y.detach().mean(0), 0.1)
        before, self.before = self.before, y.detach()
        self.log.append(before)
        return {"y": y - self.mean, "before": before, "log": list(self.log)}


@pytest.mark.filterwarnings("ignore:what comes out of Answers depends")
def test_what_cannot_be_compared_stops_nothing():
    hypernet = Hypernet(Answers(), samples=1, members=1, execution="loop").train()
    hypernet(batches()[0])
    assert hypernet.eval().ensemble(1).materialize()[0].mean.abs().min() > 0


def test_a_first_pass_that_fails_leaves_the_next_as_it_would_be():
    torch.manual_seed(0)
    hypernet = Hypernet(target(Rule(lerp, mean=VECTOR)), samples=1, members=1, execution="loop").train()
    hypernet(batches()[0])
    with pytest.raises(RuntimeError):
        hypernet.update_statistics([torch.zeros(6, 7, dtype=torch.float64)])
    hypernet.update_statistics(batches())
    (network,) = hypernet.materialize(hypernet.member_population())
    mean = means(network, batches())
    assert torch.allclose(network[1].mean, mean, rtol=0, atol=1e-9)


class Harmless(nn.Module):
    """A table that is made when it is needed, a number for a log, a scripted part and noise of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("nothing", torch.full((2,), torch.nan))
        self.part = torch.jit.script(Shift())
        self.calls, self.generator = 0, torch.Generator()

    def forward(self, x):
        self.calls += 1
        if self.table is None:
            self.table = torch.arange(5).to(x)
        noise = torch.rand(len(x), 1, generator=self.generator, dtype=x.dtype) if self.training else 0
        return self.part(x) + self.table + noise


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("k", torch.ones(5))

    def forward(self, x):
        return x + self.k


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore:.*can't be copied")
def test_what_harms_nothing_is_not_told():
    """Warnings are errors in these tests."""
    estimated(target(Harmless()))
