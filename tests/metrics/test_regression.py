"""Metrics of numbers and maps, curves, and the number of networks an ensemble is worth: against loops and known values."""

import math

import matplotlib as mpl
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.nn import functional as F

from lightning_hypernet.metrics import (
    CRPS,
    Coverage,
    EnsembleCalibrationError,
    EnsembleIoU,
    EnsembleNLL,
    EnsembleRMSE,
    MemberRMSE,
    MemberSpread,
    MixtureNLL,
    QuantileReliability,
    RegressionRejectionCurve,
    RejectionCurve,
    ReliabilityCurve,
    Sharpness,
    calibrated_log_likelihood,
    deep_ensemble_equivalent,
    population_metrics,
    regression_metrics,
)

mpl.use("Agg")


def drawn(members=3, shape=(12,)):
    torch.manual_seed(members)
    return (
        torch.randn(members, *shape).double() * 2,
        torch.randn(shape).double() * 2,
        torch.rand(members, *shape).double() + 0.1,
    )


def measured(metric, means, targets, variances=None):
    """The value of a metric that saw the batch in two parts."""
    metric.update(means[:, :5], targets[:5], None if variances is None else variances[:, :5])
    metric.update(means[:, 5:], targets[5:], None if variances is None else variances[:, 5:])
    return metric.compute()


def slow(name, means, targets, variances):
    """A score of one number at a time."""
    values = []
    for index, y in enumerate(targets.tolist()):
        mean, spread = means[:, index], variances[:, index].sqrt()
        mixture = MixtureSameFamily(Categorical(torch.ones(len(mean)).double()), Normal(mean, spread))
        if name == "nll":
            values.append(-mixture.log_prob(torch.tensor(y).double()).item())
        elif name == "rmse":
            values.append((mean.mean().item() - y) ** 2)
        elif name == "member_rmse":
            values.append(sum((one - y) ** 2 for one in mean.tolist()) / len(mean))
        elif name == "spread":
            values.append(mean.var(correction=0).item())
        else:
            share = mixture.cdf(torch.tensor(y).double()).item()
            values.append(float(0.15 <= share <= 0.85))
    total = sum(values) / len(values)
    return math.sqrt(total) if "rmse" in name else total


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (MixtureNLL(), "nll"),
        (EnsembleRMSE(), "rmse"),
        (MemberRMSE(), "member_rmse"),
        (MemberSpread(), "spread"),
        (Coverage(0.7), "coverage"),
    ],
)
def test_a_metric_is_the_mean_of_a_loop(metric, name, members):
    metric.reset()
    batch = drawn(members)
    assert measured(metric, *batch).item() == pytest.approx(slow(name, *batch), rel=1e-6, abs=1e-7)
    figure, _ = metric.plot()
    mpl.pyplot.close(figure)


def test_ranked_probability_of_mixtures_and_points():
    means, targets, variances = drawn()
    grid = torch.linspace(-30, 30, 60001).double()
    for spread in (variances, None):
        total = 0.0
        for index, y in enumerate(targets):
            each = Normal(means[:, index], variances[:, index].sqrt()).cdf(grid[:, None]) if spread is not None else None
            each = (grid[:, None] >= means[:, index]).double() if each is None else each
            total += torch.trapezoid((each.mean(1) - (grid >= y).double()).square(), grid).item() / len(targets)
        assert measured(CRPS(), means, targets, spread).item() == pytest.approx(total, abs=2e-3)


def test_sharpness_is_the_width_of_what_coverage_counts():
    means, targets, variances = drawn(1)
    half = torch.special.ndtri(torch.tensor(0.85).double()) * variances[0].sqrt()
    assert measured(Sharpness(0.7), means, targets, variances).item() == pytest.approx((2 * half).mean().item(), rel=1e-6)
    inside = ((targets - means[0]).abs() <= half).double().mean()
    assert measured(Coverage(0.7), means, targets, variances).item() == pytest.approx(inside.item())


def test_of_maps_and_of_several_numbers_every_one_counts():
    means, targets, variances = drawn(3, (6, 2, 4))
    flat = [means.flatten(1), targets.flatten(), variances.flatten(1)]
    one, other = regression_metrics(), regression_metrics()
    one.update(means, targets, variances)
    other.update(*flat)
    values = other.compute()
    assert all(torch.allclose(value, values[name]) for name, value in one.compute().items())


def test_bad_numbers_are_told():
    means, targets, variances = drawn()
    rows = [
        (
            (means, targets[1:]),
            ValueError,
            r"targets \(batch, ...\), not \(3, 12\), \(11,\)",
        ),
        ((means, targets, variances[:1]), ValueError, r"not \(3, 12\), \(1, 12\), \(12,\)"),
        ((means, targets, -variances), ValueError, "variances must be positive"),
        ((means * math.nan, targets), ValueError, "hold NaN or infinite numbers"),
        ((means, targets.long()), TypeError, "must be real numbers, not torch.float64, torch.int64"),
        ((means.tolist(), targets), TypeError, "must be tensors, not list, Tensor"),
        ((means[:, :0], targets[:0]), ValueError, r"are empty: \(3, 0\)"),
    ]
    for arguments, error, message in rows:
        with pytest.raises(error, match=message):
            CRPS().update(*arguments)
    with pytest.raises(ValueError, match="MixtureNLL is of densities, and points have none: pass variances="):
        MixtureNLL().update(means, targets)
    with pytest.raises(ValueError, match="level must lie in 0 to 1, not 2"):
        Coverage(2)


# Maps of classes


def test_of_maps_every_pixel_is_an_example_but_those_ignored():
    torch.manual_seed(0)
    maps, labels = torch.randn(3, 2, 4, 5, 6), torch.randint(4, (2, 5, 6))
    labels[0, :2] = -100
    one, other = population_metrics(4), population_metrics(4)
    one.update(maps, labels)
    kept = labels.flatten() != -100
    other.update(maps.movedim(2, -1).reshape(3, -1, 4)[:, kept], labels.flatten()[kept])
    values = other.compute()
    assert all(torch.equal(value, values[name]) for name, value in one.compute().items())
    one.update(maps, torch.full_like(labels, -100))
    assert all(torch.equal(value, values[name]) for name, value in one.compute().items())


def test_intersection_over_union_is_that_of_a_loop():
    torch.manual_seed(0)
    maps, labels = torch.randn(3, 2, 4, 5, 6), torch.randint(3, (2, 5, 6))  # a class that no pixel has
    said = maps.softmax(2).mean(0).argmax(1)
    shares = []
    for one in range(4):
        union = int(((said == one) | (labels == one)).sum())
        shares += [int(((said == one) & (labels == one)).sum()) / union] if union else []
    metric = EnsembleIoU(4)
    for index in range(2):
        metric.update(maps[:, index : index + 1], labels[index : index + 1])
    assert metric.compute().item() == pytest.approx(sum(shares) / len(shares), rel=1e-6)
    with pytest.raises(ValueError, match="predictions are of 4 classes, and this metric of 3"):
        EnsembleIoU(3).update(maps, labels)


# Curves


def predictions(examples=40, members=3, classes=3):
    torch.manual_seed(1)
    return torch.randn(members, examples, classes).mul(2).softmax(-1), torch.randint(classes, (examples,))


def test_reliability_is_that_of_a_loop():
    probabilities, labels = predictions()
    mean = probabilities.double().mean(0)
    metric = ReliabilityCurve(5)
    metric.update(probabilities[:, :9], labels[:9])
    metric.update(probabilities[:, 9:], labels[9:])
    found = metric.compute()
    for index in range(5):
        inside = [one for one in range(40) if index / 5 <= mean[one].max() < (index + 1) / 5]
        assert found[2, index].item() == pytest.approx(len(inside) / 40)
        if inside:
            assert found[0, index].item() == pytest.approx(sum(mean[one].max().item() for one in inside) / len(inside))
            right = sum(int(mean[one].argmax()) == int(labels[one]) for one in inside)
            assert found[1, index].item() == pytest.approx(right / len(inside))
        else:
            assert found[:2, index].isnan().all()
    figure, axes = metric.plot()
    assert axes.get_xlabel() == "confidence"
    mpl.pyplot.close(figure)


def test_the_reliability_of_votes_whose_shares_are_edges_of_bins_adds_up_to_the_calibration_error():
    most, most_count = torch.tensor([[0, 7], [1, 8], [2, 9], [0, 10]]).T
    said = torch.where(torch.arange(15)[:, None] < most_count, most, (most + torch.arange(15)[:, None] % 2 + 1) % 3)
    votes, labels = F.one_hot(said).float(), torch.where(most_count == 9, most, (most + 1) % 3)  # those of 0.6 alone are right
    curve, error = ReliabilityCurve(5), EnsembleCalibrationError(3, bins=5)
    for metric in (curve, error):
        metric.update(votes, labels)
    confidence, accuracy, share = curve.compute()
    assert share.tolist() == [0, 0, 0.5, 0.5, 0]
    torch.testing.assert_close((share * (confidence - accuracy).abs()).nansum(), error.compute())


def test_numbers_drawn_from_the_mixture_lie_below_its_quantiles_as_often_as_the_levels_say():
    torch.manual_seed(0)
    count = 20_000
    means, variances = torch.randn(3, count).double(), torch.rand(3, count).double() + 0.1
    pick = torch.randint(3, (1, count))
    targets = (means + variances.sqrt() * torch.randn(3, count)).gather(0, pick)[0]
    metric = QuantileReliability(9)
    metric.update(means, targets, variances)
    levels, shares = metric.compute()
    torch.testing.assert_close(levels, torch.arange(1, 10) / 10)
    torch.testing.assert_close(shares, levels, atol=0.015, rtol=0)
    figure, _ = metric.plot()
    mpl.pyplot.close(figure)


@pytest.mark.parametrize("members", [1, 4, 5])
def test_members_that_are_points_have_the_quantiles_of_the_mixture(members):
    torch.manual_seed(0)
    means, targets = torch.randn(members, 3000), torch.randn(3000)
    metric = QuantileReliability(19)
    metric.update(means, targets)
    levels, shares = metric.compute()
    for level, share in zip(levels.double().tolist(), shares.tolist(), strict=True):
        expected = (targets <= means.sort(0).values[math.ceil(round(level * members, 6)) - 1]).double().mean()
        assert share == pytest.approx(float(expected), abs=1e-6)


def test_numbers_between_0_and_1_are_probabilities_where_they_sum_to_1():
    torch.manual_seed(0)
    given, labels = torch.rand(3, 20, 4), torch.randint(4, (20,))
    normed = given / given.sum(-1, keepdim=True)
    for predictions, expected in ((given, given.softmax(-1)), (normed, normed), (normed.bfloat16(), normed.bfloat16().float())):
        metric = EnsembleNLL()
        metric.update(predictions, labels)
        nll = -expected.mean(0).gather(1, labels[:, None]).log().mean()
        torch.testing.assert_close(metric.compute().float(), nll, rtol=1e-3, atol=0)


def test_padding_among_probabilities_is_told_and_makes_no_logits_of_the_others():
    predictions = torch.rand(3, 5, 4).softmax(-1)
    predictions[:, -1] = 0
    with pytest.raises(ValueError, match="of 15 predictions 3 do not sum to 1"):
        EnsembleNLL().update(predictions, torch.tensor([0, 1, 2, 3, 0]))


@pytest.mark.parametrize("by", ["confidence", "total", "aleatoric", "epistemic"])
def test_rejection_keeps_the_surest_first(by):
    probabilities, labels = predictions()
    mean = probabilities.mean(0)
    entropy = torch.special.entr(mean).sum(-1)
    each = torch.special.entr(probabilities).sum(-1).mean(0)
    doubts = {"confidence": -mean.amax(-1), "total": entropy, "aleatoric": each, "epistemic": entropy - each}[by].tolist()
    wrong = (mean.argmax(-1) != labels).tolist()
    order = sorted(range(40), key=doubts.__getitem__)
    metric = RejectionCurve(by)
    metric.update(probabilities[:, :9], labels[:9])
    metric.update(probabilities[:, 9:], labels[9:])
    share, error = metric.compute()
    for kept in range(1, 41):
        assert share[kept - 1].item() == pytest.approx(kept / 40)
        assert error[kept - 1].item() == pytest.approx(sum(wrong[one] for one in order[:kept]) / kept, abs=1e-6)
    assert metric.area.item() == pytest.approx(error.mean().item())
    figure, axes = metric.plot()
    assert axes.get_ylabel() == "accuracy, %"
    mpl.pyplot.close(figure)


def test_equal_doubts_share_their_errors_in_whatever_order_they_come():
    probabilities = torch.tensor([0.6, 0.4]).repeat(1, 8, 1)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    for order in (slice(None), torch.arange(7, -1, -1)):
        metric = RejectionCurve()
        metric.update(probabilities, labels[order])
        torch.testing.assert_close(metric.compute()[1], torch.full((8,), 0.25))


@pytest.mark.parametrize("by", ["total", "aleatoric", "epistemic"])
def test_rejection_of_numbers_keeps_the_surest_first(by):
    means, targets, variances = drawn(3, (10, 2))
    doubts = {"aleatoric": variances.mean(0), "epistemic": means.var(0, correction=0)}
    doubts["total"] = doubts["aleatoric"] + doubts["epistemic"]
    error = (means.mean(0) - targets).square().flatten()[doubts[by].flatten().argsort()]
    metric = RegressionRejectionCurve(by)
    found = measured(metric, means, targets, variances)[1]
    torch.testing.assert_close(found, (error.cumsum(0) / torch.arange(1, 21)).float())
    assert metric.area.item() == pytest.approx(found.mean().item())
    figure, _ = metric.plot()
    mpl.pyplot.close(figure)


# How many networks it is worth


def test_equivalents_lie_on_lines_between_whole_numbers():
    known = [-1.0, -0.8, -0.7, -0.72, -0.65]
    expected = {-1.2: 1.0, -1.0: 1.0, -0.9: 1.5, -0.8: 2.0, -0.71: 2.9, -0.7: 3.0, -0.685: 4.5, -0.65: 5.0, -0.6: math.inf}
    for score, count in expected.items():
        assert deep_ensemble_equivalent(score, known) == pytest.approx(count)
    with pytest.raises(ValueError, match="networks is empty"):
        deep_ensemble_equivalent(-1, [])
    with pytest.raises(ValueError, match="score must be a number, not nan"):
        deep_ensemble_equivalent(math.nan, known)


def test_independent_networks_are_worth_their_own_number():
    """Networks whose logits are the truth with noise of their own."""
    torch.manual_seed(0)
    truth = torch.randn(3000, 4).double()
    labels = Categorical(logits=truth).sample()
    networks = (truth + 1.5 * torch.randn(24, 3000, 4)).softmax(-1)
    curve = [
        sum(calibrated_log_likelihood(networks[first : first + size].mean(0), labels, 2) for first in range(0, 12, size))
        / len(range(0, 12, size))
        for size in (1, 2, 3, 4)
    ]
    assert curve == sorted(curve)
    score = calibrated_log_likelihood(networks[20:23].mean(0), labels)
    assert deep_ensemble_equivalent(score, curve) == pytest.approx(3, abs=1)


def test_the_likelihood_is_that_of_the_best_temperature_of_the_other_half():
    torch.manual_seed(0)
    truth = torch.randn(4000, 3).double()
    labels = Categorical(logits=truth).sample()
    found = [calibrated_log_likelihood((factor * truth).softmax(-1), labels, seed=3) for factor in (1.0, 4.0, 0.3)]
    assert found[1] == pytest.approx(found[0], abs=1e-6) and found[2] == pytest.approx(found[0], abs=1e-6)
    assert found[0] == pytest.approx(Categorical(logits=truth).log_prob(labels).mean().item(), abs=2e-3)
    assert calibrated_log_likelihood(truth.softmax(-1), labels, seed=3) == found[0]


def test_what_are_no_probabilities_is_told():
    labels = torch.arange(6) % 3
    with pytest.raises(ValueError, match="must be 0 or more and sum to 1: pass prediction.mean"):
        calibrated_log_likelihood(torch.randn(6, 3), labels)
    with pytest.raises(ValueError, match=r"must be \(examples, classes\), of four or more, not \(2, 3\)"):
        calibrated_log_likelihood(torch.full((2, 3), 1 / 3), labels[:2])
