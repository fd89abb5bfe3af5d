import itertools

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.symmetry.alignment import align, symmetry_distance
from lightning_hypernet.symmetry.gauge import (
    ComposedGauge,
    LogitShiftGauge,
    NoGauge,
    PermutationGauge,
    ScaleGauge,
)
from lightning_hypernet.symmetry.graph import SymmetryError
from tests.symmetry.examination import examine, holds, prepared, random_weights, relative, run, shuffled, symmetries_of
from tests.symmetry.test_scale import MODULES


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
    assert symmetries_of(module, torch.randn(2, 1, 5, 5).double())[1] == []


def test_channels_whose_first_writer_is_one_number_are_told_apart():
    """The gauge of scale makes all such numbers the same but for their signs."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.first, self.last = nn.Parameter(torch.randn(6)), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.scale * self.first(x).tanh())

    report = examine(Shifted(), torch.randn(4, 3))
    assert holds(report)
    assert (report.groups.count, report.channels) == (6, 6)


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 5, 5), torch.ones(2, 1, 5, 5)], ids=["zeros", "ones"])
def test_inputs_that_show_nothing_certify_nothing(x):
    module = Mirrored().double()
    assert symmetries_of(module, x.double())[1] == []


def test_outputs_that_show_nothing_certify_nothing():
    """A softmax of ever larger activations is one-hot, whatever comes in."""

    class Saturated(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.head = Mirrored(), nn.Linear(2, 3)

        def forward(self, x):
            return (self.head(self.front(x)) * 1e6).softmax(-1)

    module = Saturated().double()
    assert symmetries_of(module, torch.randn(2, 1, 5, 5).double())[1] == []


def test_what_holds_only_together_is_no_symmetry():
    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return torch.cat([a[:, :1], a[:, 1:].flip(-1), b[:, :1], b[:, 1:].flip(-1)], 1).sum(1).tanh().mean()

    module = Coupled().double()
    assert symmetries_of(module, torch.randn(2, 1, 6, 6).double())[1] == []


def test_a_target_of_single_precision_alone_is_told():
    class Single(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float())

    module = Single(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(SymmetryError, match="Single can't be run in double precision, which certifies permutations"):
        symmetries_of(module, torch.randn(2, 3))


def test_alignment_never_ends_farther_than_it_starts():
    """One parameter lies in the block on both axes, where linear assignment by itself may lose."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.first(x)
            return self.last(h + self.inner(h).tanh())

    module = Recurrent().double()
    blocks = symmetries_of(module, torch.randn(4, 3).double())[1]
    assert [block.size for block in blocks] == [6]
    one, other = ({name: torch.randn(200, *p.shape).double() for name, p in module.named_parameters()} for _ in range(2))

    def distances(weights):
        return sum((weights[name] - one[name]).flatten(1).square().sum(1) for name in one)

    assert (distances(align(other, one, blocks)) <= distances(other) + 1e-9).all()


@pytest.mark.parametrize("name", ["mlp", "residual_norm", "transformer"])
def test_a_part_of_a_composed_gauge_is_the_part_of_the_whole(name):
    make, shape, _ = MODULES[name]
    module, x = prepared(make()), torch.randn(shape).double()
    groups, blocks = symmetries_of(module, x)
    gauges = [ScaleGauge(groups), PermutationGauge(blocks)]
    if groups.output:
        gauges.append(LogitShiftGauge(groups.output))
    gauge, weights = ComposedGauge(*gauges), random_weights(module, 2)
    whole = gauge(weights)
    for chosen in [*([key] for key in weights), list(weights)[::3]]:
        part = gauge.select(weights, chosen)
        assert sorted(part) == sorted(chosen)
        assert all(torch.equal(part[key], whole[key]) for key in chosen)


def test_swapping_channels_of_different_blocks_changes_the_output():
    module = prepared(MODULES["group_norm"][0]())
    inputs = (torch.randn(2, 2, 7, 7).double(),)
    first, second = symmetries_of(module, *inputs)[1]
    weights = random_weights(module)
    wrong = dict(weights)
    for axis, other in zip(first.axes, second.axes, strict=True):
        order = torch.arange(weights[axis.parameter].shape[axis.dim + 1])
        order[axis.index[0]], order[other.index[0]] = other.index[0], axis.index[0]
        wrong[axis.parameter] = wrong[axis.parameter].index_select(axis.dim + 1, order)
    before = run(module, weights, inputs)
    assert relative(run(module, wrong, inputs), before) > 1e-6
    assert relative(run(module, shuffled([first, second], weights), inputs), before) < 1e-12


def test_alignment_of_one_block_is_the_best_of_all_permutations():
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    (block,) = symmetries_of(module, torch.randn(2, 3).double())[1]
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
    groups, blocks = symmetries_of(module, x)
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
    fixed = hypernet.symmetries.gauge(one.weights)
    for block in hypernet.symmetries.blocks:
        sums = torch.stack([axis.gather(fixed).sum(-1) for axis in block.axes]).sum(0)
        assert (sums.diff(dim=1) >= -1e-5).all()
    assert torch.allclose(hypernet.symmetries.distance(one.weights, one.weights), torch.zeros(3), atol=1e-3)
    assert (hypernet.symmetries.distance(one.weights, other.weights) > 0.2).all()
