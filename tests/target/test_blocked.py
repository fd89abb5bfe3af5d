"""Blocks of examples and channels last: the numbers of the loop, or the loop."""

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS
from lightning_hypernet.target.blocked import BLOCK, blocks_of, channels_last, may_block

LONG = 2 * BLOCK + 37


def images(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def twins(target, **options):
    torch.manual_seed(0)
    loop = Hypernet(target.double(), samples=3, members=3, execution="loop", **options)
    blocked = Hypernet(target, samples=3, members=3, execution="blocked", **options)
    blocked.load_state_dict(loop.state_dict())
    return loop, blocked


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_images_give_the_numbers_of_the_loop(channels, training):
    loop, blocked = twins(images(channels))
    x = torch.randn(LONG, channels, 5, 5, dtype=torch.float64, requires_grad=True)
    outputs, gradients = [], []
    for hypernet in (loop, blocked):
        hypernet.train(training)
        with torch.set_grad_enabled(training):
            for _ in range(2):  # the first run is watched
                hypernet.prior.draws = 0
                output = hypernet(x)
        outputs.append(output)
        if training:
            gradients.append(torch.autograd.grad(output.square().sum(), [x, *hypernet.generator.parameters()]))
    assert torch.allclose(*outputs, atol=1e-10)
    assert all(torch.allclose(*pair, atol=1e-9) for pair in zip(*gradients, strict=True))
    assert type(blocked.executor.backend).__name__ == "Blocked"


def test_blocks_are_run_where_nothing_trains(monkeypatch):
    sizes = []
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: sizes.append(len(x)) or original(self, x))
    _, blocked = twins(images())
    x = torch.randn(LONG, 3, 5, 5).double()
    with torch.no_grad():
        blocked.eval()(x)
        sizes.clear()
        output = blocked(x)
    assert output.shape == (LONG, 2)
    assert sorted(sizes) == sorted([BLOCK, BLOCK, 37] * 3)
    sizes.clear()
    blocked(x)
    assert sizes[-3:] == [LONG] * 3


class OverTheBatch(nn.Module):
    """Takes the mean of the batch off, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0)


class Pairs(OverTheBatch):
    def forward(self, x):
        return self.layer(x) @ self.layer(x).mT


@pytest.mark.parametrize("kind", [OverTheBatch, Pairs])
def test_what_mixes_a_batch_is_not_cut(kind, monkeypatch):
    monkeypatch.setattr("lightning_hypernet.target.trial.time", Clock())
    torch.manual_seed(0)
    auto = Hypernet(kind(), members=2).eval()
    loop = Hypernet(kind(), members=2, execution="loop").eval()
    loop.load_state_dict(auto.state_dict())
    x = torch.randn(LONG, 4)
    with torch.no_grad():
        outputs = [hypernet(x) for hypernet in (auto, loop)]
    (made,) = auto.executor.choices.made.values()
    assert made["backend"] != "blocked"
    assert made["blocked"] is None
    assert torch.allclose(*outputs, atol=1e-5)


class Clock:
    """Blocks, which come last, take the least time."""

    def __init__(self):
        self.now, self.step = 0.0, 1.0

    def perf_counter(self):
        self.step /= 2
        self.now += self.step
        return self.now


class AtWill(OverTheBatch):
    def forward(self, x, off=False):
        return super().forward(x) if off else self.layer(x)


def test_another_kind_of_call_is_measured_anew(monkeypatch):
    monkeypatch.setattr("lightning_hypernet.target.trial.time", Clock())
    torch.manual_seed(0)
    hypernet, x = Hypernet(AtWill(), members=2).eval(), torch.randn(LONG, 4)
    with torch.no_grad():
        population = hypernet.sample(2)
        networks = hypernet.materialize(population)
        for off in (False, True):
            found = hypernet.run(population, x, off=off)
            assert torch.allclose(found, torch.stack([one(x, off=off) for one in networks]), atol=1e-5)
    backends = [made["backend"] for made in hypernet.executor.choices.made.values()]
    assert backends[0] == "blocked" != backends[1]


class Counting(OverTheBatch):
    """Counts its calls, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


def test_what_counts_its_calls_is_not_cut():
    hypernet = Hypernet(Counting(), members=2, execution="blocked").eval()
    with torch.no_grad():
        population = hypernet.sample(2)
        for _ in range(3):
            hypernet.run(population, torch.randn(LONG, 4))
    assert population.networks.stacked_buffers(["calls"])["calls"].tolist() == [3, 3]


def test_outputs_have_the_layout_of_the_loop():
    for training in (True, False):
        loop, blocked = (hypernet.train(training) for hypernet in twins(nn.Conv2d(3, 5, 3, padding=1)))
        x = torch.randn(LONG, 3, 4, 4).double()
        with torch.set_grad_enabled(training):
            assert blocked(x).stride() == loop(x).stride()


class Strided(nn.Module):
    """Reads how its input lies in memory."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 2)

    def forward(self, x):
        return self.layer(x.as_strided((len(x), 12), (12, 1)))


def test_what_reads_the_layout_is_not_changed_in_training(monkeypatch):
    monkeypatch.setattr("lightning_hypernet.target.trial.time", Clock())
    torch.manual_seed(0)
    hypernet = Hypernet(Strided(), samples=2).train()
    x = torch.randn(8, 3, 2, 2)
    with hypernet.step():
        output, networks = hypernet(x), hypernet.materialize(hypernet.population)
    (made,) = hypernet.executor.choices.made.values()
    assert made["blocked"] is None
    assert torch.allclose(output, torch.cat([one(part) for one, part in zip(networks, x.split(4), strict=True)]), atol=1e-6)


def test_examples_that_stand_alone_may_be_cut():
    torch.manual_seed(0)
    hypernet = Hypernet(images(), members=2).eval()
    with torch.no_grad():
        hypernet(torch.randn(LONG, 3, 5, 5))
    (made,) = hypernet.executor.choices.made.values()
    assert made["blocked"] is not None


def test_hooks_and_training_see_a_batch_whole():
    target, arguments = images().eval(), Arguments((torch.randn(LONG, 3, 5, 5),), {})
    with torch.no_grad():
        assert may_block(target, arguments)
        assert not may_block(target, Arguments((torch.randn(BLOCK, 3, 5, 5),), {}))
        target[1].train()
        assert not may_block(target, arguments)
        target.eval()[0].register_forward_hook(lambda module, args, output: None)
        assert not may_block(target, arguments)
        hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
        assert not may_block(images().eval(), arguments)
        hook.remove()
    assert not may_block(images().eval(), arguments)


def test_a_call_is_cut_along_the_batch_alone():
    x, shared = torch.randn(LONG, 3), torch.randn(5)
    blocks = blocks_of(Arguments((x,), {"shared": shared}))
    assert [block.batch for block in blocks] == [BLOCK, BLOCK, 37]
    for block in blocks:
        _, kwargs = block.of(0)
        assert kwargs["shared"] is shared


@pytest.mark.parametrize("channels", [3, 16])
def test_gradients_that_overrun_their_memory_are_not_taken(channels):
    """torch's own for a strided convolution of single pixels and few channels, where these lie last."""
    layouts = []
    target = nn.Sequential(nn.Conv2d(channels, 64, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    target[0].register_forward_pre_hook(lambda _, args: layouts.append(args[0].is_contiguous()))
    hypernet = Hypernet(target, samples=2, members=2, execution="blocked")
    x = torch.randn(4, channels, 24, 24)
    for _ in range(3):
        hypernet.train()(x).sum().backward()
    assert layouts and all(layouts)
    with torch.no_grad():
        hypernet.eval()(x)
    assert not layouts[-1]


def test_images_alone_change_their_layout():
    x = torch.randn(2, 3, 5, 5)
    assert channels_last(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(channels_last(x), x)
    others = [torch.randn(2, 3), torch.ones(2, 3, 4, 4, dtype=torch.long), "text", None]
    assert all(channels_last(one) is one for one in others)
    assert not BACKENDS["blocked"].fits(Hypernet(images()).executor.replicas, Arguments((torch.randn(2, 3),), {}))
