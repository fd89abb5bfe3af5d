"""ModelParallelStrategy shards what generates the weights; two ranks train as one process does, and as DDP does."""

import pytest
import torch

from lightning_hypernet import Hypernet
from tests.machines import training
from tests.machines.processes import on_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    printed = on_two("tests.machines.training", folder)
    assert all(f"done {rank}" in text for rank, text in enumerate(printed))
    _, trainer, losses, figures = training.trained()
    training.report(folder, "alone", trainer, losses, figures)
    return folder


def read(folder, name):
    state = torch.load(folder / f"{name}.ckpt", weights_only=False)["state_dict"]
    return state, torch.load(folder / f"{name}.pt")


def numbers(state):
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(("one", "other"), [("sharded", "alone"), ("sharded_entropy", "ddp_entropy")])
def test_losses_figures_and_parameters_are_equal(folder, one, other):
    (state, told), (wanted, expected) = read(folder, one), read(folder, other)
    torch.testing.assert_close(told["losses"], expected["losses"], atol=1e-5, rtol=1e-5)
    assert told["losses"][:4].mean() > told["losses"][4:].mean()
    figures = {name for name in expected["figures"] if one != "sharded" or "distance" not in name}
    assert told["figures"].keys() == expected["figures"].keys() and {"validation"} <= figures
    for name in figures:
        assert told["figures"][name] == pytest.approx(expected["figures"][name], abs=1e-5), name
    assert state.keys() == wanted.keys()
    torch.testing.assert_close(numbers(state), numbers(wanted), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_shards_put_together_loads_in_a_plain_run(folder):
    state, _ = read(folder, "sharded")
    assert not any(hasattr(value, "to_local") for value in state.values())
    plugin = training.SharesPlugin()
    loaded = Hypernet.from_checkpoint(folder / "sharded.ckpt", training.Model().net, plugins=[plugin]).eval()
    alone = Hypernet.from_checkpoint(folder / "alone.ckpt", training.Model().net, plugins=[plugin]).eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), alone(x), atol=1e-5, rtol=1e-5)


def test_a_run_of_shards_continues_as_a_plain_one_does(folder):
    _, _, losses = training.resumed(folder / "alone.ckpt")
    _, _, plainly = training.resumed(folder / "sharded.ckpt")
    assert len(losses) == 4
    torch.testing.assert_close(plainly, losses, atol=1e-5, rtol=1e-5)
    continued = torch.load(folder / "resumed.pt")["losses"]
    torch.testing.assert_close(continued, losses, atol=1e-5, rtol=1e-5)


def test_what_needs_the_generator_whole_is_refused(folder):
    told = torch.load(folder / "refusals.pt")
    assert "of the target 'net' are sharded already: leave the target out of fully_shard" in told["target"]
    assert "pass data_parallel_size=2, tensor_parallel_size=1" in told["layers"]
    assert "backward='two_pass' generates weights in parts" in told["passes"]
    assert "take distribution='generator', or DDP" in told["density"]
    assert told["other"] == "nothing"
