"""What a page needs to know beside the members: inputs, from which symmetries are read, and training data for statistics."""

import warnings

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet, from_pretrained, save_pretrained
from lightning_hypernet.reports import measure, write_report

SHIFT = 5.0


def build():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def batches(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    return [
        (SHIFT + torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    hypernet = Hypernet(build(), batches(0)[0][0], members=4, components=2, execution="loop")
    hypernet.update_statistics(batches(0))
    return save_pretrained(hypernet, tmp_path_factory.mktemp("kept") / "hypernet")


def test_members_keep_the_statistics_of_a_checkpoint_and_new_networks_get_theirs_of_the_loader(folder):
    alone = Hypernet.from_checkpoint(folder, build())
    beside = Hypernet.from_checkpoint(folder, build(), loader=batches(1))
    x = batches(2)[0][0]
    assert torch.equal(beside(x), alone(x))
    drawn = beside.sample(3)
    for network in beside.materialize(drawn):
        assert (network[1].running_mean - network[0](torch.cat([x for x, _ in batches(1)])).mean(0)).abs().max() < 1e-4
    with pytest.raises(RuntimeError, match="pass loader= to from_checkpoint"):
        alone.run(alone.sample(1), x)
    with pytest.raises(ValueError, match="pass a loader that is not empty"):
        Hypernet.from_checkpoint(folder, build(), loader=[])


def test_a_loader_is_read_no_further_than_inputs_are_kept(folder):
    read = []

    def endless():
        while True:
            read.append(0)
            yield torch.randn(512, 4), torch.zeros(512)

    Hypernet.from_checkpoint(folder, build(), loader=endless())
    assert len(read) == 4
    Hypernet.from_checkpoint(folder, build()).remember(endless(), most=600)
    assert len(read) == 4 + 2


def test_a_loader_of_a_checkpoint_shows_the_inputs_that_symmetries_are_read_with(folder):
    assert "symmetries not read" in Hypernet.from_checkpoint(folder, build()).summary()
    read = Hypernet.from_checkpoint(folder, build(), loader=batches(1)).summary()
    assert "the scale of 6 of 7 filters is fixed, in 12 groups of channels" in read
    plain = Hypernet(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), members=2)
    plain.remember(batches(1))
    assert plain.symmetries.groups.count == 5


def test_a_page_is_measured_with_a_gauge_though_the_checkpoint_alone_shows_none(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = write_report(from_pretrained(folder, target=build()), batches(2), tmp_path / "page.html").read_text()
    assert "auto, 12 groups of channels" in text
    assert "of two networks, gauge-fixed" in text
    seen, unseen = (Hypernet.from_checkpoint(folder, build(), **given) for given in ({}, {"gauge": "none"}))
    figures = measure(seen, batches(2), deep=False).figures
    told = Hypernet(build(), batches(0)[0][0], members=4, components=2, execution="loop").eval()
    told.load_state_dict(unseen.state_dict() | {"_extra_state": seen.get_extra_state()})
    assert figures["weight_cosine"] == pytest.approx(measure(told, batches(2), deep=False).figures["weight_cosine"], rel=1e-6)
    assert figures["weight_cosine"] != pytest.approx(measure(unseen, batches(2), deep=False).figures["weight_cosine"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:no gauge is fixed")
@pytest.mark.parametrize("changes", [{}, {"gauge": "none"}])
def test_without_a_gauge_nothing_is_called_gauge_fixed(folder, tmp_path, changes):
    text = write_report(Hypernet.from_checkpoint(folder, build(), **changes), None, tmp_path / "page.html").read_text()
    assert "of two networks, as they are, since no gauge is fixed" in text
    assert "gauge-fixed" not in text


def test_training_inputs_give_the_page_averages_and_paths(folder):
    found = measure(Hypernet.from_checkpoint(folder, build()), batches(2))
    assert {"averaging", "paths"} <= set(found.left_out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(Hypernet.from_checkpoint(folder, build(), loader=batches(1)), batches(2))
    assert found.left_out == {} and found.paths is not None
    assert list(found.averaging.counts) == [1, 2]  # of four members, two of each component
