"""An ensemble of one is its network, in every figure."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_hypernet import Hypernet
from lightning_hypernet.metrics import (
    Disagreement,
    EnsembleIoU,
    QStatistic,
    QuantileReliability,
    RegressionRejectionCurve,
    RejectionCurve,
    ReliabilityCurve,
    calibrated_log_likelihood,
    population_metrics,
    regression_metrics,
)
from lightning_hypernet.metrics.base import pair_mean


@pytest.fixture
def made():
    """An ensemble of one, its network, and inputs."""
    torch.manual_seed(0)
    ensemble = Hypernet(nn.Linear(4, 6).double(), execution="loop").eval().ensemble(1)
    return ensemble, ensemble.materialize()[0], 5 * torch.randn(200, 4).double()


@pytest.mark.parametrize("reduce", ["mean", "log_mean_prob", "majority"])
def test_its_outputs_are_its_networks(made, reduce):
    ensemble, network, x = made
    ensemble.reduce = reduce
    outputs = network(x)
    expected = {
        "mean": outputs,
        "log_mean_prob": outputs.log_softmax(-1),
        "majority": F.one_hot(outputs.argmax(-1), 6).double(),
    }
    torch.testing.assert_close(ensemble(x), expected[reduce])
    torch.testing.assert_close(ensemble.members(x)[0], outputs)


def test_every_metric_of_classes_is_that_of_its_network(made):
    ensemble, network, x = made
    labels = torch.distributions.Categorical(logits=network(x) / 2).sample()
    metrics = population_metrics(6)
    metrics.update(ensemble.members(x), labels)
    p = network(x).softmax(-1)
    accuracy = (p.argmax(-1) == labels).double().mean().item()
    nll = F.nll_loss(p.log(), labels).item()
    expected = {
        "member_accuracy": accuracy,
        "best_member_accuracy": accuracy,
        "ensemble_accuracy": accuracy,
        "majority_accuracy": accuracy,
        "member_nll": nll,
        "ensemble_nll": nll,
        "brier": (p - F.one_hot(labels, 6)).square().sum(-1).mean().item(),
        "ece": multiclass_calibration_error(p, labels, 6).item(),
        "disagreement": 0.0,
        "mutual_information": 0.0,
        "variation_ratio": 0.0,
        "pairwise_kl": 0.0,
        "double_fault": 1 - accuracy,
        "q_statistic": 1.0,
    }
    found = metrics.compute()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-6), name
    for name in ("disagreement", "mutual_information", "variation_ratio", "pairwise_kl"):
        assert found[name].item() == 0, name


def test_the_other_figures_of_classes_are_those_of_its_network(made):
    ensemble, network, x = made
    labels = torch.distributions.Categorical(logits=network(x) / 2).sample()
    p = network(x).softmax(-1)
    prediction = ensemble.predict(x)
    assert calibrated_log_likelihood(prediction.mean, labels) == pytest.approx(calibrated_log_likelihood(p, labels))
    for metric in (RejectionCurve(), RejectionCurve("total"), ReliabilityCurve(), EnsembleIoU(6)):
        alone = copy.deepcopy(metric)
        metric.update(prediction.members, labels)
        alone.update(p[None], labels)
        torch.testing.assert_close(metric.compute(), alone.compute(), equal_nan=True)
    doubtless = RejectionCurve("epistemic")
    doubtless.update(prediction.members, labels)
    error = (p.argmax(-1) != labels).double().mean().item()
    torch.testing.assert_close(doubtless.compute()[1], torch.full((200,), error))


def test_every_metric_of_numbers_is_that_of_its_network(made):
    ensemble, network, x = made
    prediction = ensemble.predict(x, task="regression", variance="log_variance")
    mean, raw = network(x).chunk(2, 1)
    targets = mean + raw.div(2).exp() * torch.randn(200, 3)
    normal, half = torch.distributions.Normal(mean, raw.div(2).exp()), 1.6448536269514722 * raw.div(2).exp()
    z, spread = (targets - mean) / raw.div(2).exp(), raw.div(2).exp()
    unit = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
    score = spread * (z * (2 * unit.cdf(z) - 1) + 2 * unit.log_prob(z).exp() - 1 / math.sqrt(math.pi))
    rmse = (mean - targets).square().mean().sqrt()
    expected = {
        "ensemble_rmse": rmse,
        "member_rmse": rmse,
        "mixture_nll": -normal.log_prob(targets).mean(),
        "crps": score.mean(),
        "coverage": ((targets - mean).abs() <= half).double().mean(),
        "sharpness": (2 * half).mean(),
        "member_spread": torch.zeros(()),
    }
    metrics = regression_metrics(0.9)
    metrics.update(prediction.means, targets, prediction.variances)
    found = metrics.compute()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), abs=1e-6), name
    assert found["member_spread"] == 0
    reliability = QuantileReliability(9)
    reliability.update(prediction.means, targets, prediction.variances)
    levels = torch.arange(1, 10) / 10
    torch.testing.assert_close(reliability.compute()[1], (normal.cdf(targets)[..., None] <= levels).float().mean((0, 1)))
    curve = RegressionRejectionCurve()
    curve.update(prediction.means, targets, prediction.variances)
    order = raw.flatten().argsort()
    kept = (mean - targets).square().flatten()[order].cumsum(0) / torch.arange(1, 601)
    torch.testing.assert_close(curve.compute()[1], kept.float())


def test_one_member_is_its_own_pair():
    one = torch.arange(3.0).reshape(1, 1, 3)
    assert torch.equal(pair_mean(one), torch.arange(3.0))
    metric = QStatistic()
    metric.update(torch.tensor([[[0.9, 0.1]]]), torch.tensor([0]))
    assert metric.compute() == 0  # always right, as the denominator says
    disagreement = Disagreement()
    disagreement.update(torch.rand(1, 6, 3).softmax(-1), torch.zeros(6, dtype=torch.long))
    assert disagreement.compute() == 0
