import itertools

import pytest
import timm
import torch
from hypothesis import given, settings
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.gauge import ComposedGauge, NoGauge, PermutationGauge, ScaleGauge, align, symmetry_distance
from lightning_hypernet.permutation import read_permutations
from lightning_hypernet.symmetry import read_symmetries
from tests.symmetries import prepared, random_weights, relative, run
from tests.test_symmetry import MODULES, STEPS, Graph


def names_of(module):
    return [name for name, _ in module.named_parameters()]


def shuffled(blocks, weights):
    for block in blocks:
        orders = [torch.randperm(block.size) for _ in next(iter(weights.values()))]
        weights = block.permute(weights, torch.stack(orders))
    return weights


def examine_permutations(module, *inputs):
    """Errors of the two properties, for symmetries of both kinds together; and the number of channels that may be permuted."""
    module = prepared(module)
    inputs = tuple(x.double() for x in inputs)
    groups = read_symmetries(module, inputs, {}, names_of(module))
    blocks = read_permutations(module, inputs, {}, names_of(module))
    weights = random_weights(module)
    other = shuffled(blocks, groups.transform(weights, (torch.randn(1, groups.count).double() * 0.7).exp()))
    gauge = ComposedGauge(ScaleGauge(groups), PermutationGauge(blocks))
    before, fixed, also_fixed = run(module, weights, inputs), gauge(weights), gauge(other)
    errors = [relative(run(module, one, inputs), before) for one in (other, fixed)]
    errors += [relative(also_fixed[name], fixed[name]) for name in fixed]
    return max(errors), sum(block.size for block in blocks)


CHANNELS = {
    "mlp": 13, "lenet": 56, "residual": 11, "residual_norm": 11, "residual_gelu": 11, "dense": 12,
    "gated": 8, "layer_scaled": 8, "transformer": 8 + 2 * (8 + 8 + 12), "shuffled": 2, "instance_norm": 4,
    "group_norm": 4, "unet": 8, "tied": 0, "odd": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODULES if name != "tied"])
def test_permutations_and_their_gauge(name):
    make, shape, _ = MODULES[name]
    error, channels = examine_permutations(make(), torch.randn(shape))
    assert error < 1e-9
    assert channels == CHANNELS.get(name, channels)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_random_graphs(steps):
    torch.manual_seed(0)
    error, _ = examine_permutations(Graph(steps), torch.randn(4, 4, 4, 4))
    assert error < 1e-9


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 2880), ("convnext_atto", 7960), ("mobilenetv3_small_100", 4872)])
def test_timm_models(name, channels):
    module = prepared(timm.create_model(name, num_classes=10))
    inputs = (torch.randn(2, 3, 64, 64).double(),)
    blocks = read_permutations(module, inputs, {}, names_of(module))
    assert sum(block.size for block in blocks) == channels
    weights = random_weights(module)
    assert relative(run(module, shuffled(blocks, weights), inputs), run(module, weights, inputs)) < 1e-9


class Mirrored(nn.Module):
    """Two channels of four are read from right to left, which identities of channels don't show."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 9, 2)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.head(torch.cat([x[:, :2], x[:, 2:].flip(-1)], 1).flatten(1))


def test_a_run_refuses_what_the_graph_proposes_wrongly():
    module = Mirrored().double()
    assert read_permutations(module, (torch.randn(2, 1, 5, 5).double(),), {}, names_of(module)) == []


def test_swapping_channels_of_different_blocks_changes_the_output():
    module = prepared(MODULES["group_norm"][0]())
    inputs = (torch.randn(2, 2, 7, 7).double(),)
    first, second = read_permutations(module, inputs, {}, names_of(module))
    weights = random_weights(module)
    wrong = dict(weights)
    for part, other in zip(first.parts, second.parts, strict=True):
        order = torch.arange(weights[part.parameter].shape[part.axis + 1])
        order[part.index[0]], order[other.index[0]] = other.index[0], part.index[0]
        wrong[part.parameter] = wrong[part.parameter].index_select(part.axis + 1, order)
    before = run(module, weights, inputs)
    assert relative(run(module, wrong, inputs), before) > 1e-6
    assert relative(run(module, shuffled([first, second], weights), inputs), before) < 1e-12


def test_alignment_of_one_block_is_the_best_of_all_permutations():
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    (block,) = read_permutations(module, (torch.randn(2, 3).double(),), {}, names_of(module))
    weights, reference = random_weights(module, 3), random_weights(module, 3)
    aligned = align(weights, reference, [block])

    def distances(one):
        return sum((one[name] - reference[name]).flatten(1).square().sum(1) for name in one)

    tried = [block.permute(weights, torch.tensor([order] * 3)) for order in itertools.permutations(range(5))]
    assert torch.allclose(distances(aligned), torch.stack([distances(one) for one in tried]).amin(0), rtol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "residual_norm", "transformer"])
def test_symmetric_networks_have_no_distance(name):
    make, shape, _ = MODULES[name]
    module, x = prepared(make()), torch.randn(shape).double()
    groups, blocks = (read(module, (x,), {}, names_of(module)) for read in (read_symmetries, read_permutations))
    one, other = random_weights(module, 2), shuffled(blocks, random_weights(module, 2))
    same = shuffled(blocks, groups.transform(one, torch.rand(2, groups.count).double() + 0.5))
    gauge = ScaleGauge(groups)
    assert symmetry_distance(one, same, gauge, blocks).max() < 1e-7
    near, far = symmetry_distance(one, other, gauge, blocks), symmetry_distance(one, other, gauge, [])
    assert (near > 0.1).all()
    assert (near < far).all()
    raw = {key: value * 0 for key, value in one.items()}
    assert torch.allclose(symmetry_distance(one, raw, NoGauge(), []), torch.tensor(2.0).double().sqrt())


def test_a_hypernet_with_the_permutation_gauge():
    x = torch.randn(8, 5)
    hypernet = Hypernet(MODULES["mlp"][0](), example_inputs=x, gauge="permutation").eval()
    one, other = hypernet.sample(3), hypernet.sample(3)
    fixed = hypernet.gauge(one.weights)
    for block in hypernet.blocks:
        sums = block.parts[0].gather(fixed).sum(-1)
        assert (sums.diff(dim=1) >= 0).all()
    assert torch.allclose(hypernet.symmetry_distance(one, one), torch.zeros(3), atol=1e-3)
    assert (hypernet.symmetry_distance(one, other) > 0.2).all()
