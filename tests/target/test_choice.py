"""Which backend a call takes: measured beside it, once for every signature, and kept."""

import copy
import random
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS
from lightning_hypernet.target.trial import Trial


def mlp(**options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    return Hypernet(target, **{"samples": 4, **options})


def rows(n=8):
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clock(monkeypatch):
    """Trials take the seconds that the test says; every one is noted."""

    class Clock:
        seconds: ClassVar = {}
        trials: ClassVar = []

    def seconds(self, name):
        Clock.trials.append(name)
        if isinstance(Clock.seconds[name], Exception):
            raise Clock.seconds[name]
        return Clock.seconds[name]

    Clock.seconds, Clock.trials = {"loop": 0.002, "vmap": 0.0015}, []
    monkeypatch.setattr(Trial, "seconds", seconds)
    return Clock


@pytest.fixture
def ran(monkeypatch):
    """The names of the backends that ran networks, trials aside."""
    names = []
    for name, backend in BACKENDS.items():
        original = type(backend).run

        def run(self, networks, *args, name=name, original=original, **kwargs):
            if not networks.replicas.muted:
                names.append(name)
            return original(self, networks, *args, **kwargs)

        monkeypatch.setattr(type(backend), "run", run)
    return names


@pytest.mark.parametrize(("seconds", "faster"), [((0.002, 0.0015), "vmap"), ((0.0015, 0.002), "loop")])
def test_the_faster_one_is_taken_after_three_rounds_in_turn(clock, ran, seconds, faster):
    clock.seconds = dict(zip(("loop", "vmap"), seconds, strict=True))
    hypernet = mlp()
    for _ in range(3):
        hypernet(rows())
    assert clock.trials == ["loop", "vmap"] * 4
    assert ran == [faster] * 3
    (made,) = hypernet.executor.choices.made.values()
    assert made == {"backend": faster, "loop": seconds[0], "vmap": seconds[1]}


def test_a_clear_warm_up_and_long_networks_are_not_measured_further(clock):
    clock.seconds = {"loop": 0.001, "vmap": 0.003}
    mlp()(rows())
    assert clock.trials == ["loop", "vmap"]
    clock.trials.clear()
    clock.seconds = {"loop": 4 * 0.2, "vmap": 0.1}
    hypernet = mlp()
    hypernet(rows())
    assert clock.trials == ["loop"]
    (made,) = hypernet.executor.choices.made.values()
    assert made == {"backend": "loop", "loop": 0.8, "vmap": None}


def test_every_signature_is_measured_once(clock):
    hypernet = mlp()
    for n in (8, 8, 64, 60, 64):
        hypernet(rows(n))
    assert len(hypernet.executor.choices.made) == 2  # sizes are rounded up to powers of two
    with torch.no_grad():
        hypernet(rows())
    hypernet.eval()(rows())
    assert len(hypernet.executor.choices.made) == 4
    hypernet.train()(rows(7))  # uneven parts
    assert len(hypernet.executor.choices.made) == 4


def test_what_vmap_cannot_run_goes_to_the_loop_without_a_word(clock, ran):
    clock.seconds = {"loop": 0.001, "vmap": RuntimeError("no batching rule")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypernet = mlp()
        hypernet(rows())
    assert ran == ["loop"]
    (made,) = hypernet.executor.choices.made.values()
    assert made == {"backend": "loop", "loop": 0.001, "vmap": None}


def test_trials_warn_of_nothing():
    class Loud(nn.Linear):
        def forward(self, x):
            warnings.warn("once a call", stacklevel=1)
            return super().forward(x)

    hypernet = Hypernet(Loud(6, 3), samples=4, execution="loop")
    networks, plans = hypernet.sample(4).networks, hypernet.executor.plans
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Trial(networks, plans.arguments(hypernet.target, (rows().float(),), {}), "forward").seconds("loop") > 0


def test_types_do_not_follow_from_the_time(clock):
    class Lines(nn.Module):
        def __init__(self):
            super().__init__()
            self.lines = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 3)])

        def forward(self, x):
            return self.lines[1](self.lines[0](x).relu())

    clock.seconds = {"loop": 0.002, "vmap": 0.001}
    hypernet = Hypernet(Lines(), samples=4).train()
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert hypernet(rows().float()).dtype == dtype
    assert [made["backend"] for made in hypernet.executor.choices.made.values()] == ["vmap"]


def test_deterministic_algorithms_take_the_loop_unmeasured(clock, ran):
    torch.use_deterministic_algorithms(True)
    try:
        mlp()(rows())
    finally:
        torch.use_deterministic_algorithms(False)
    assert (clock.trials, ran) == ([], ["loop"])


def test_a_choice_can_be_set(clock, ran):
    for name in ("loop", "vmap"):
        mlp(execution=name)(rows())
    assert (clock.trials, ran) == ([], ["loop", "vmap"])


def test_the_choice_goes_with_the_state_and_is_told(clock):
    hypernet = mlp()
    hypernet(rows())
    measured = len(clock.trials)
    other = mlp()
    other.load_state_dict(copy.deepcopy(hypernet.state_dict()))
    clock.seconds = {"loop": 0.001, "vmap": 0.0015}
    other(rows())
    assert len(clock.trials) == measured
    assert other.executor.choices.made == hypernet.executor.choices.made
    inputs = "inputs (sizes rounded up to powers of two) float64 4x2x8"
    line = f"vmap for forward, train, gradients, 4 networks, {inputs}, torch.float64, cpu: loop 2.0 ms, vmap 1.5 ms"
    assert line in other.summary()


def test_trials_leave_everything_as_it_was():
    """Hooks don't see them, random numbers are drawn again, buffers and the population stay."""
    draws, seen = [], []
    for execution in ("auto", "loop", "vmap"):
        hypernet = mlp(execution=execution)
        hypernet[0].register_forward_hook(lambda module, args, output: seen.append(output))
        seen.clear()
        torch.manual_seed(3)
        with hypernet.step():
            hypernet(rows())
            weights = {name: value.detach().clone() for name, value in hypernet.population.weights.items()}
            assert all(torch.equal(value, weights[name]) for name, value in hypernet.population.weights.items())
            assert all(parameter.grad is None for parameter in hypernet.parameters())
            for index, replica in enumerate(hypernet.population.networks.hold(4)):
                assert replica.module[1].num_batches_tracked == 1, index
        made = hypernet.executor.choices.made
        assert len(seen) == (1 if execution == "vmap" or (made and next(iter(made.values()))["backend"] == "vmap") else 4)
        assert torch.equal(hypernet.target[1].running_mean, torch.zeros(5).double())
        draws.append(torch.rand(()).item())
    assert draws[0] in draws[1:]


def test_both_give_the_same_numbers_with_statistics_that_last():
    """Norm layers read in evaluation what training calls of the same population left."""

    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            y = self.layer(x)
            self.mean.mul_(0.5).add_(0.5 * y.detach().mean(0))
            return y - self.mean

    found = []
    for execution in ("loop", "vmap"):
        torch.manual_seed(0)
        hypernet = Hypernet(Running().double(), samples=4, execution=execution)
        with hypernet.step():
            calls = [hypernet(rows()), hypernet(rows() + 1), hypernet(rows(9)), hypernet(rows())]
            sum(call.square().sum() for call in calls).backward()
        found.append([*calls, *(parameter.grad for parameter in hypernet.generator.parameters())])
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(*found, strict=True))
    assert not torch.allclose(found[0][0], found[0][3])


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_a_trial_runs_forward_and_backward_and_nobody_sees_it(name):
    backward = []

    class Counted(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            backward.append(1)
            return gradient * 2

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            noise = torch.rand(()) + random.random() + np.random.rand()
            return Counted.apply(self.layer(x)) + noise

    hypernet = Hypernet(Drawing().double(), samples=4, execution="loop")
    with hypernet.step():
        hypernet(rows())
        networks = hypernet.population.networks
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        assert Trial(networks, Arguments((rows(),), {}, 4), "forward").seconds(name) > 0
    assert backward
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_a_call_that_vmap_cannot_run_goes_to_the_loop_from_then_on(clock, ran):
    class Flagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, flag=False):
            y = self.layer(x)
            return y * y.sum().item() if flag else y

    hypernet = Hypernet(Flagged().double(), samples=4)
    hypernet(rows())
    assert ran == ["vmap"]
    hypernet(rows(), flag=True)
    assert ran == ["vmap", "vmap", "loop"]
    hypernet(rows(), flag=True)
    assert ran[-1] == "loop"
    assert len(ran) == 4
