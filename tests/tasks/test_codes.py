"""Codes of tasks: their length, what their rate allows, and codes far from those seen; levels of z for wings of layers."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from lightning_hypernet import Hypernet
from lightning_hypernet.generator import NormalPrior
from lightning_hypernet.tasks import Encoded, accuracy_bound, code_length, novel


def encoded(mean, log_std):
    return Encoded(mean, mean, log_std, {"z": mean.shape[1]})


def test_the_bound_on_accuracy_is_fanos():
    assert accuracy_bound(0.0, 10) == pytest.approx(0.1, abs=1e-5)
    assert accuracy_bound(math.log(10), 10) == 1.0
    assert accuracy_bound(50.0, 10) == 1.0
    for classes, accuracy in ((2, 0.8), (10, 0.55)):  # a symmetric channel reaches it
        wrong = (1 - accuracy) / (classes - 1)
        left = -accuracy * math.log(accuracy) - (1 - accuracy) * math.log(wrong)
        assert accuracy_bound(math.log(classes) - left, classes) == pytest.approx(accuracy, abs=1e-9)
    assert accuracy_bound(0.0, 2, entropy=0.3) > 0.9
    with pytest.raises(ValueError, match="classes"):
        accuracy_bound(1.0, 1)
    with pytest.raises(ValueError, match="entropy"):
        accuracy_bound(1.0, 2, entropy=1.0)


def test_a_code_costs_its_divergence_and_the_examples_their_loss_in_bits():
    source = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(2, 4, 3, generator=source, dtype=torch.float64)
    one = encoded(mean, log_std)
    rate = kl_divergence(Independent(Normal(mean, log_std.exp()), 1), Independent(Normal(torch.zeros(4, 3).double(), 1.0), 1))
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(code_length(losses, one), (losses + rate) / math.log(2))
    with pytest.raises(ValueError, match=r"\(4,\), not \(3,\)"):
        code_length(losses[:3], one)


def test_novel_codes_are_the_farthest_from_all_that_were_seen():
    prior = NormalPrior(2)
    seen = encoded(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.zeros(2, 2))
    found = novel(prior, seen, 3, candidates=200).z
    prior.draws -= 1
    drawn = prior.draw(200).z
    known = seen.mean
    for row in found:
        far = torch.cdist(drawn, known).amin(1)
        assert torch.equal(drawn[far.argmax()], row)
        known = torch.cat([known, row[None]])
    with pytest.raises(ValueError, match="candidates=2"):
        novel(prior, seen, 3, candidates=2)


def test_a_level_of_z_moves_its_own_wing_alone_and_the_first_moves_all():
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    extractor = {"name": "levels", "levels": [3, 2, 2], "wings": [1, 2]}
    net = Hypernet(target, latent_dim=7, generator={"extractor": extractor}, gauge="none").eval()
    base = torch.randn(1, 7, dtype=torch.float64)
    start = net.decode(base).weights
    for level, moved in ((slice(0, 3), {"0", "2", "4"}), (slice(3, 5), {"0"}), (slice(5, 7), {"2", "4"})):
        z = base.clone()
        z[:, level] += 1.0
        weights = net.decode(z).weights
        changed = {name.split(".")[0] for name, value in weights.items() if (value - start[name]).abs().max() > 1e-9}
        assert changed == moved
    with pytest.raises(ValueError, match="add up to latent_dim=7"):
        Hypernet(target, latent_dim=7, generator={"extractor": {"name": "levels", "levels": [3, 3]}})
    with pytest.raises(ValueError, match="hold all 3 banks"):
        Hypernet(target, latent_dim=7, generator={"extractor": {"name": "levels", "levels": [3, 2, 2], "wings": [1, 1]}})
