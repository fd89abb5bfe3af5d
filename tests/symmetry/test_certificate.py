"""Certificates on smaller inputs: what they show must hold on the inputs themselves."""

import pytest
import torch
from torch import nn

from lightning_hypernet.symmetry.certificate import certify
from lightning_hypernet.symmetry.order import Axis, Block
from lightning_hypernet.symmetry.randomised import Randomised
from tests.symmetry.examination import symmetries_of


class Mirrored(nn.Module):
    """Two channels of four are read from right to left, in some modes and sizes; a hidden layer of eight lies behind.

    Args:
        pooled: The side of what is pooled to one place before.
        wider: The side up to which nothing is mirrored.
        mode: The mode in which nothing is mirrored.
        head: What reads the last map of 5 channels.
    """

    def __init__(self, pooled=2, wider=0, mode=None, head=None):
        super().__init__()
        self.first, self.pool, self.mix = nn.Conv2d(1, 4, 3, padding=1), nn.AvgPool2d(pooled), nn.Conv2d(4, 5, 1)
        self.head = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 2))
        self.wider, self.mode, self.sides = wider, mode, []

    def forward(self, x):
        self.sides.append(x.shape[-1])
        hidden = self.pool(self.first(x)).tanh()
        if x.shape[-1] > self.wider and self.training is not self.mode:
            hidden = torch.cat([hidden[:, :2], hidden[:, 2:].flip(-1)], 1)
        return self.last(self.head(self.mix(hidden).tanh()))


def sizes(module, side):
    x = torch.randn(2, 1, side, side).double()
    module = module.double()
    with torch.no_grad():
        module(x)
    return [block.size for block in symmetries_of(module, x)[1]]


def test_smaller_images_show_what_images_show():
    assert sizes(Mirrored(wider=200), 128) == [4, 5, 8]
    assert sizes(Mirrored(), 128) == [5, 8]


@pytest.mark.parametrize("mode", [None, True, False])
@pytest.mark.parametrize("wider", [0, 100])
def test_what_larger_images_or_one_mode_alone_show_is_refused(wider, mode):
    """Smaller ones take another branch."""
    assert sizes(Mirrored(wider=wider, mode=mode), 128) == [5, 8]


def test_a_map_that_is_one_place_of_smaller_images():
    assert sizes(Mirrored(pooled=64), 128) == [5, 8]


def test_a_pool_that_reads_a_map_of_its_own_size_in_smaller_images():
    head = nn.Sequential(nn.AdaptiveMaxPool2d((32, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert sizes(Mirrored(head=head), 128) == [5, 8]


@pytest.mark.parametrize("wider", [0, 200])
def test_a_target_that_insists_on_its_size(wider):
    head = nn.Sequential(nn.AvgPool2d(12), nn.Flatten())
    assert sizes(Mirrored(wider=wider, head=head), 144) == ([4, 5, 8] if wider else [5, 8])


def test_statistics_of_few_values_in_smaller_images():
    """One value in a channel, whose statistics show nothing of what comes in."""
    head = nn.Sequential(nn.BatchNorm2d(5), nn.AvgPool2d(32), nn.BatchNorm2d(5), nn.Flatten())
    assert sizes(Mirrored(wider=200, head=head), 128) == [4, 5, 8]
    assert sizes(Mirrored(head=head), 128) == [5, 8]


def test_one_value_in_a_channel_of_smaller_inputs_is_refused():
    """One example leaves one, at which norm layers would turn to other statistics, as they do where two leave one each."""
    head = nn.Sequential(nn.AvgPool2d(72), nn.BatchNorm2d(5), nn.Flatten())
    module = Mirrored(wider=200, head=head)
    sizes(module, 144)
    x = torch.randn(2, 1, 144, 144).double()
    random = Randomised(module, (x,), {})
    (*_, first) = random.smaller()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        random.network(first)(random.weights[0])
    assert torch.isfinite(random.network(random.call)(random.weights[0])).all()


def test_examples_that_are_read_together():
    """One example alone shows nothing of what mixes them."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.first(x).tanh()
            return self.last(torch.cat([hidden[:, :2], hidden[:, 2:].flip(0)], 1).exp())

    assert symmetries_of(Mixed().double(), torch.randn(2, 3).double())[1] == []


def test_most_runs_are_of_smaller_images():
    network = Mirrored(wider=200)
    sizes(network, 128)
    x = torch.randn(2, 1, 128, 128).double()
    blocks = symmetries_of(network, x)[1]
    network.sides = sides = _Shared()
    assert len(certify(blocks, network, (x,), {})) == 3
    assert sides.count(128) == 4
    assert sides.count(64) > 8


class _Shared(list):
    """A list that copies share."""

    def __deepcopy__(self, memo):
        return self


def hidden_block(size):
    index = torch.arange(size)[:, None]
    return Block(size, (Axis("weight", 0, index), Axis("bias", 0, index)))


@pytest.mark.parametrize(
    ("size", "read", "holds"),
    [
        (3, lambda h: h.sum(1), True),
        (3, lambda h: (h * h.roll(1, 1).square()).sum(1), False),
        (4, lambda h: h.sum(1) + h[:, 2], False),
        (5, lambda h: h.sum(1) + h[:, 4].square(), False),
        (3, lambda h: (h[:, 0] - h[:, 1]) * (h[:, 1] - h[:, 2]) * (h[:, 2] - h[:, 0]), False),
        (2, lambda h: h.prod(1), True),
        (2, lambda h: h[:, 0] - h[:, 1], False),
    ],
    ids=["sum", "turning", "one apart", "the last apart", "signed", "pair", "difference"],
)
def test_every_permutation_must_hold(size, read, holds):
    """Of three channels the even permutations are the turns, of which a block's own would be no more than three."""

    class Read(nn.Linear):
        def forward(self, x):
            return read(super().forward(x).tanh())

    torch.manual_seed(0)
    block = hidden_block(size)
    assert certify([block], Read(4, size).double(), (torch.randn(6, 4).double(),), {}) == ([block] if holds else [])
