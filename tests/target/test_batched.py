"""Chains of layers run for all networks at once: the numbers of the loop, or the loop."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.target.arguments import Arguments
from lightning_hypernet.target.backends import BACKENDS
from lightning_hypernet.target.batched import RULES

WIDTHS = st.integers(1, 6)
ELEMENTWISE = sorted((one for one in RULES if one not in (nn.Linear, nn.LayerNorm, nn.Flatten, nn.Dropout)), key=str)


@st.composite
def chains(draw):
    """A chain, and the shape of an example."""
    shape = draw(st.lists(WIDTHS, min_size=1, max_size=3))
    width, layers = shape[-1], []
    flat = len(shape) == 1
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["linear", "norm", "elementwise", "flatten", "nested"]))
        if kind in ("linear", "nested"):
            after = draw(WIDTHS)
            layer = nn.Linear(width, after, bias=draw(st.booleans()))
            layers.append(nn.Sequential(layer, nn.Tanh()) if kind == "nested" else layer)
            width = after
        elif kind == "norm":
            layers.append(nn.LayerNorm(width, elementwise_affine=draw(st.booleans())))
        elif kind == "elementwise":
            layers.append(draw(st.sampled_from(ELEMENTWISE))())
        elif not flat:
            layers.append(nn.Flatten())
            width, flat = width * torch.Size(shape[:-1]).numel(), True
    return nn.Sequential(*layers, nn.Linear(width, 2)), shape


def twins(target, **options):
    """The same Hypernet twice: its networks one after the other, and at once."""
    torch.manual_seed(0)
    loop = Hypernet(target.double(), samples=3, members=3, execution="loop", **options)
    batched = Hypernet(target, samples=3, members=3, execution="batched", **options)
    batched.load_state_dict(loop.state_dict())
    return loop, batched


def agree(loop, batched, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = [hypernet(x) for hypernet in (loop, batched)]
    assert torch.allclose(*outputs, atol=1e-12)
    assert type(batched.executor.backend).__name__ == "Batched"
    if not loop.training:
        return
    gradients = []
    for hypernet, output in zip((loop, batched), outputs, strict=True):
        hypernet.zero_grad()
        (output * torch.linspace(0, 1, output.numel()).reshape(output.shape).double()).sum().backward()
        gradients.append({name: one.grad for name, one in hypernet.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(one, gradients[1][name], atol=1e-10) for name, one in gradients[0].items())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(chains(), st.integers(1, 3))
def test_a_chain_gives_the_numbers_of_the_loop(chain, each):
    target, shape = chain
    loop, batched = twins(target)
    x = torch.randn(3 * each, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for training in (True, False):
        for hypernet in (loop, batched):
            hypernet.train(training)
        agree(loop, batched, x)


def test_what_is_not_generated_is_shared():
    target = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))
    nn.init.normal_(target[1].weight)
    nn.init.normal_(target[1].bias)
    for exclude in (["0.weight"], ["1.*"], ["3.*", "0.bias"], ["1.bias"], ["1.weight"]):
        loop, batched = twins(target, exclude=exclude)
        agree(loop.train(), batched.train(), torch.randn(6, 4).double())


def test_tied_layers_are_one():
    layer = nn.Linear(4, 4)
    loop, batched = twins(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2)))
    agree(loop.train(), batched.train(), torch.randn(6, 4).double())


def test_inputs_are_left_as_they_are():
    loop, batched = twins(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)))
    x = torch.randn(6, 4).double()
    before = x.clone()
    for _ in range(2):
        agree(loop.train(), batched.train(), x)
        assert torch.equal(x, before)


def test_dropout_differs_between_networks():
    hypernet = Hypernet(nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 3)), samples=4, execution="batched").train()
    weights = {name: value[:1].expand_as(value) for name, value in hypernet.sample(4).weights.items()}
    outputs = BACKENDS["batched"].run(hypernet.executor.networks(weights), hypernet.executor.plans.arguments(
        hypernet.target, (torch.ones(2, 50),), {}))  # fmt: skip
    assert len({tuple(one.flatten().tolist()) for one in outputs}) == 4


class Mixing(nn.Sequential):
    """Looks like a chain, and takes the mean of the batch off."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


def hooked():
    target = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    target[0].register_forward_hook(lambda module, args, output: 2 * output)
    return target


class Subclass(nn.Linear):
    def forward(self, x):
        return super().forward(x).cumsum(0)


def with_buffer():
    layer = nn.Linear(4, 4)
    del layer.bias
    layer.register_buffer("bias", torch.randn(4))
    return nn.Sequential(layer, nn.Linear(4, 2))


@pytest.mark.parametrize(
    "make",
    [
        with_buffer,
        lambda: Mixing(nn.Linear(4, 2)),
        hooked,
        lambda: nn.Sequential(Subclass(4, 2)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(0), nn.Unflatten(0, (-1, 4)), nn.Linear(4, 2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
    ],
)
def test_what_is_no_chain_runs_one_after_the_other(make):
    loop, batched = twins(make())
    assert not BACKENDS["batched"].fits(batched.executor.replicas, Arguments((torch.randn(6, 4),), {}))
    x = torch.randn(6, 4).double()
    with pytest.warns(UserWarning, match="Batched cannot run"):
        output = batched.train()(x)
    assert torch.allclose(output, loop.train()(x), atol=1e-12)


def test_a_hook_that_comes_later_is_seen():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), samples=3).train()
    hypernet(torch.randn(6, 4))
    seen = []
    hypernet[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    hypernet(torch.randn(6, 4))
    assert seen == [(2, 4)] * 3


def test_a_chain_is_measured_against_the_loop():
    hypernet = Hypernet(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), samples=3).train()
    hypernet(torch.randn(6, 4))
    (made,) = hypernet.executor.choices.made.values()
    assert made.keys() == {"backend", "loop", "batched"}
    assert "batched" in hypernet.summary()


def test_networks_run_some_at_a_time():
    loop, batched = twins(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    population, x = loop.eval().sample(5), torch.randn(3, 4).double()
    expected = loop.run(population, x)
    for size in (None, 1, 2, 5, 9):
        assert torch.allclose(batched.eval().run(population, x, chunk_size=size), expected, atol=1e-12)
