"""Temperatures: fitted ones against a fine grid, and what they may never do."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_hypernet.uncertainty import mixtures
from lightning_hypernet.uncertainty.temperature import fit_classes, fit_numbers, fit_temperature, stretched, tempered

GRID = torch.linspace(math.log(0.05), math.log(20), 4001, dtype=torch.float64).exp()


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_of_classes_it_is_the_best_of_a_grid(factor):
    torch.manual_seed(0)
    true = torch.randn(400, 5, dtype=torch.float64) * 2
    labels = torch.distributions.Categorical(logits=true).sample()
    logs = (true * factor).log_softmax(-1)
    best = GRID[torch.stack([F.cross_entropy(logs / one, labels) for one in GRID]).argmin()].item()
    assert fit_classes(logs, labels) == pytest.approx(best, rel=2e-3)
    assert fit_classes(logs.float(), labels) == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize("members", [1, 4])
def test_of_numbers_it_is_the_best_of_a_grid(members):
    torch.manual_seed(1)
    means, variances = torch.randn(members, 300).double(), torch.rand(members, 300).double() + 0.1
    targets = means.mean(0) + 3 * torch.randn(300).double()
    loss = [-mixtures.log_density(targets, *stretched(means, variances, float(one))).mean() for one in GRID]
    assert fit_numbers(means, variances, targets) == pytest.approx(GRID[torch.stack(loss).argmin()].item(), rel=2e-3)


def test_stretching_multiplies_the_variance_and_keeps_the_mean():
    torch.manual_seed(0)
    means, variances = torch.randn(3, 8).double(), torch.rand(3, 8).double()
    before, after = mixtures.moments(means, variances), mixtures.moments(*stretched(means, variances, 2.5))
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1] + after[2], 2.5 * (before[1] + before[2]))


def test_a_temperature_of_one_changes_no_bit():
    logs = torch.randn(3, 5).log_softmax(-1)
    assert tempered(logs, 1.0) is logs
    assert stretched(logs, logs, 1.0) == (logs, logs)


def test_where_all_are_right_it_goes_to_its_limit_and_says_so():
    logs = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).log_softmax(-1)
    with pytest.warns(UserWarning, match=r"of the mean prediction went to its limit, 0\.01, .*all predictions are right"):
        found = fit_classes(logs, torch.tensor([0, 1]))
    assert found == pytest.approx(0.01)


def test_a_label_without_probability_is_told():
    logs = torch.tensor([[1.0, 0.0]]).log()
    with pytest.raises(ValueError, match="the loss of member 3 is inf: a label has the probability 0"):
        fit_classes(logs, torch.tensor([1]), "member 3")


def test_classes_that_are_ruled_out_change_nothing():
    torch.manual_seed(0)
    logs = (torch.randn(200, 3) * 4).double().log_softmax(-1)
    labels = torch.distributions.Categorical(logits=logs / 3).sample()
    wider = torch.cat([logs, torch.full((200, 1), -math.inf)], 1)
    found = fit_classes(wider, labels)
    assert found == pytest.approx(fit_classes(logs, labels), rel=1e-9) and found > 2


def test_a_loss_above_that_of_one_is_never_taken():
    assert fit_temperature(lambda temperature: temperature.log().square()) == 1.0
    assert fit_classes(torch.zeros(4, 2).log_softmax(-1), torch.tensor([0, 1, 0, 0])) == 1.0
    with pytest.raises(ValueError, match="the loss of the mean prediction is nan"):
        fit_temperature(lambda temperature: temperature * math.nan)


def test_it_is_fitted_in_whatever_mode_autograd_is():
    torch.manual_seed(0)
    logs, labels = torch.randn(50, 3).log_softmax(-1), torch.randint(3, (50,))
    with torch.inference_mode():
        inside = fit_classes(logs * 1, labels * 1)
    with torch.no_grad():
        assert fit_classes(logs, labels) == inside
