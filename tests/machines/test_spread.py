"""An ensemble whose members lie on two ranks gives what one process gives."""

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.spread import Spread
from tests.machines.processes import on_two
from tests.machines.spreading import REDUCTIONS, hypernet_of, images


def ensemble_of(reduce="mean"):
    return hypernet_of(reduce).ensemble(5, loader=[images(2)])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spread")
    ensemble_of().save(folder / "ensemble")
    torch.save(hypernet_of().state_dict(), folder / "state.pt")
    on_two("tests.machines.spreading", folder)
    return [torch.load(folder / f"told{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loaded_ensemble(told, rank):
    ensemble, x = ensemble_of(), images(1)
    torch.testing.assert_close(told[rank]["loaded"], ensemble(x), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(told[rank]["members"], ensemble.members(x), atol=1e-12, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_networks_that_are_drawn_together(told, rank, reduce):
    torch.testing.assert_close(told[rank][reduce], ensemble_of(reduce)(images(1)), atol=1e-12, rtol=1e-12)


@pytest.mark.slow
def test_what_would_be_another_ensemble_is_refused(told):
    assert told[0]["inputs"] == told[1]["inputs"]
    assert "the ranks were given different inputs: pass use_distributed_sampler=False" in told[0]["inputs"]
    assert "the ranks hold different ensembles: load one folder on all of them" in told[1]["ensembles"]
    assert "the ranks hold different hypernetworks: load one checkpoint" in told[0]["hypernets"]
    assert "1 members leave 1 of 2 ranks without any" in told[0]["few"]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_one_process_runs_all(reduce):
    ensemble, x = ensemble_of(reduce), images(1)
    spread = Spread(ensemble)
    assert len(spread) == 5
    torch.testing.assert_close(spread(x), ensemble(x), atol=1e-12, rtol=1e-12)
    drawn = Spread.draw(hypernet_of(reduce), 5, loader=[images(2)])
    torch.testing.assert_close(drawn(x), ensemble(x), atol=1e-12, rtol=1e-12)


def test_a_hypernet_is_drawn_from():
    with pytest.raises(TypeError, match=r"Spread.draw takes a Hypernet"):
        Spread(Hypernet(nn.Linear(3, 2)))
