import math

import matplotlib as mpl
import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.metrics import (
    Disagreement,
    DoubleFault,
    EnsembleAccuracy,
    EnsembleBrier,
    EnsembleCalibrationError,
    EnsembleNLL,
    MemberAccuracy,
    MemberNLL,
    PairwiseKL,
    PredictiveInformation,
    QStatistic,
    SymmetryDistance,
    VariationRatio,
    WeightCosine,
    population_metrics,
)

mpl.use("Agg")

# Three members, four examples, three classes. They predict 0 0 1, 1 1 1, 2 0 1, 2 2 2; the labels are 0, 1, 0, 0.
PREDICTIONS = torch.tensor(
    [
        [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.0, 0.0, 1.0]],
        [[0.6, 0.2, 0.2], [0.0, 1.0, 0.0], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]],
        [[0.1, 0.9, 0.0], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3], [0.1, 0.0, 0.9]],
    ]
)
LABELS = torch.tensor([0, 1, 0, 0])


def h(*shares):
    return -sum(share * math.log(share) for share in shares if share)


def kl(p, q):
    tiny = torch.finfo(torch.float32).tiny
    return sum(a * math.log(a / max(b, tiny)) for a, b in zip(p, q, strict=True) if a)


def mean_kl():
    rows = PREDICTIONS.tolist()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    return sum(kl(rows[i][b], rows[j][b]) for i, j in pairs for b in range(4)) / (4 * len(pairs))


EXPECTED = {
    # right: member 0 on the first two, member 1 on the first three, member 2 on the second.
    MemberAccuracy: (2 / 4 + 3 / 4 + 1 / 4) / 3,
    # mean probabilities: .5 .4 .1 | 1: .7 | .8/3 1.1/3 1.1/3 | 2: 2.5/3.
    EnsembleAccuracy: 2 / 4,
    EnsembleNLL: -(math.log(0.5) + math.log(0.7) + math.log(0.8 / 3) + math.log(0.1)) / 4,
    EnsembleBrier: (
        (0.25 + 0.16 + 0.01)
        + ((0.5 / 3) ** 2 + 0.09 + (0.4 / 3) ** 2)
        + ((2.2 / 3) ** 2 + 2 * (1.1 / 3) ** 2)
        + (0.81 + (0.2 / 3) ** 2 + (2.5 / 3) ** 2)
    )
    / 4,
    # pairs that disagree, of three: two, none, three, none.
    Disagreement: (2 / 3 + 0 + 1 + 0) / 4,
    VariationRatio: (1 / 3 + 0 + 2 / 3 + 0) / 4,
    PredictiveInformation: (
        (h(0.5, 0.4, 0.1) - (h(0.8, 0.1, 0.1) + h(0.6, 0.2, 0.2) + h(0.1, 0.9)) / 3)
        + (h(0.5 / 3, 0.7, 0.4 / 3) - (h(0.2, 0.7, 0.1) + h(1.0) + h(0.3, 0.4, 0.3)) / 3)
        + (h(0.8 / 3, 1.1 / 3, 1.1 / 3) - (h(0.1, 0.3, 0.6) + h(0.5, 0.3, 0.2) + h(0.2, 0.5, 0.3)) / 3)
        + (h(0.1, 0.2 / 3, 2.5 / 3) - (h(1.0) + h(0.2, 0.2, 0.6) + h(0.1, 0.9)) / 3)
    )
    / 4,
    # both wrong: members 0 and 1 on the last; 0 and 2 on the last two; 1 and 2 on the last.
    DoubleFault: (1 / 4 + 2 / 4 + 1 / 4) / 3,
    # (both right, first alone, second alone, none): (2 0 1 1), (1 1 0 2), (1 2 0 1).
    QStatistic: 1.0,
    PairwiseKL: mean_kl(),
}


@pytest.mark.parametrize("metric", EXPECTED, ids=lambda metric: metric.__name__)
def test_against_a_hand_computed_example(metric):
    whole, parts, called = metric(), metric(), metric()
    whole.update(PREDICTIONS, LABELS)
    for part in (slice(3), slice(3, None)):
        parts.update(PREDICTIONS[:, part], LABELS[part])
        called(PREDICTIONS[:, part], LABELS[part])
    for one in (whole, parts, called):
        assert one.compute().item() == pytest.approx(EXPECTED[metric], rel=1e-5)
    figure, _ = whole.plot()
    assert figure.axes
    mpl.pyplot.close(figure)


def test_the_others():
    best, each, majority = MemberAccuracy("best"), MemberAccuracy("none"), EnsembleAccuracy("majority")
    for metric in (best, each, majority):
        metric.update(PREDICTIONS, LABELS)
    assert best.compute() == 0.75
    assert each.compute().tolist() == [0.5, 0.75, 0.25]
    assert majority.compute() == 0.75  # three votes for three classes: the first class, which is right
    figure, axes = each.plot()
    assert axes.get_xlabel() == "accuracy, %"
    mpl.pyplot.close(figure)
    ece = EnsembleCalibrationError(3, bins=3)  # confidences .5 and .37 in one bin, .7 and .83 in another; half are right
    ece(PREDICTIONS[:, :2], LABELS[:2])
    ece(PREDICTIONS[:, 2:], LABELS[2:])
    gaps = abs((0.5 + 1.1 / 3) / 2 - 0.5), abs((0.7 + 2.5 / 3) / 2 - 0.5)
    assert ece.compute().item() == pytest.approx(sum(gaps) / 2, rel=1e-4)
    ece.reset()
    ece.update(PREDICTIONS[:, :1], LABELS[:1])
    assert ece.compute().item() == pytest.approx(0.5, rel=1e-4)


def of_classes(*members):
    """Sure predictions of two classes."""
    return torch.nn.functional.one_hot(torch.tensor(members), 2).float()


def test_q_of_members_that_err_apart():
    """Both right on four, the first alone on two, the second alone on one, none on three."""
    metric = QStatistic()
    metric.update(of_classes([0] * 6 + [1] * 4, [0] * 4 + [1] * 2 + [0] + [1] * 3), torch.zeros(10, dtype=torch.long))
    assert metric.compute().item() == pytest.approx((4 * 3 - 2 * 1) / (4 * 3 + 2 * 1))


@pytest.mark.parametrize("metric", [MemberAccuracy(), DoubleFault()])
def test_another_number_of_members_is_told(metric):
    metric.update(PREDICTIONS[:1], LABELS)
    with pytest.raises(ValueError, match="it saw 1, and now there are 3; reset.. it before another ensemble"):
        metric.update(PREDICTIONS, LABELS)
    metric.reset()
    metric.update(PREDICTIONS, LABELS)


def test_autocast_changes_no_metric():
    predictions = (PREDICTIONS + 0.1).div(1.3) * torch.tensor([1.0, 1.001, 0.999]).view(3, 1, 1)
    inside, outside = (population_metrics(3) for _ in range(2))
    outside.update(predictions, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        inside.update(predictions, LABELS)
    assert all(torch.equal(value, outside.compute()[name]) for name, value in inside.compute().items())


def test_member_nll_of_positive_probabilities():
    metric = MemberNLL()
    metric.update(PREDICTIONS[:, :1], LABELS[:1])
    assert metric.compute().item() == pytest.approx(-(math.log(0.8) + math.log(0.6) + math.log(0.1)) / 3)


def test_logits_are_told_from_probabilities():
    logits = PREDICTIONS.clamp(min=1e-30).log()
    metrics = [population_metrics(3) for _ in range(2)]
    metrics[0].update(PREDICTIONS.clamp(min=1e-30), LABELS)
    metrics[1].update(logits, LABELS)
    values, same = (metric.compute() for metric in metrics)
    for name, value in values.items():
        assert torch.allclose(value, same[name], rtol=1e-4), name


def test_wrong_shapes_are_told():
    with pytest.raises(ValueError, match=r"predictions must be .members, batch, classes. and labels .batch,., not .4, 3."):
        Disagreement().update(PREDICTIONS[0], LABELS)
    with pytest.raises(ValueError, match="reduce must be"):
        MemberAccuracy("worst")
    with pytest.raises(ValueError, match="vote must be"):
        EnsembleAccuracy("all")


def test_weights_of_members():
    target, x = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 3)
    hypernet = Hypernet(target, example_inputs=x).eval()
    population = hypernet.sample(4)
    gauged = population.gauged.detach()
    pairs = [(i, j) for i in range(4) for j in range(i)]
    cosine = sum(torch.cosine_similarity(gauged[i], gauged[j], dim=0) for i, j in pairs) / len(pairs)
    distance = sum(
        hypernet.symmetries.distance(population[j : j + 1].weights, population[i : i + 1].weights) for i, j in pairs
    ) / len(pairs)
    for metric, expected, atol in ((WeightCosine(), cosine, 1e-6), (SymmetryDistance(hypernet), distance, 1e-5)):
        metric.update(population)
        assert torch.allclose(metric.compute(), expected, atol=atol)
        metric.update(population[:2])
        pair = metric.of_pairs(population[1:2], population[:1])
        assert metric.compute().item() == pytest.approx((6 * expected.item() + pair.item()) / 7, abs=1e-5)
        figure, _ = metric.plot()
        mpl.pyplot.close(figure)
        with pytest.raises(ValueError, match="pairs need two networks or more, not 1"):
            metric.update(population[:1])
        assert not metric.state_dict()


@pytest.mark.slow
def test_classical_measures_against_deslib():
    diversity = pytest.importorskip("deslib.util.diversity")
    torch.manual_seed(0)
    predictions, labels = torch.rand(5, 200, 3).softmax(-1), torch.randint(0, 3, (200,))
    votes = predictions.argmax(-1).numpy()
    pairs = [(i, j) for i in range(5) for j in range(i)]
    for metric, name in ((DoubleFault(), "double_fault"), (QStatistic(), "Q_statistic")):
        theirs = sum(getattr(diversity, name)(labels.numpy(), votes[i], votes[j]) for i, j in pairs) / len(pairs)
        metric.update(predictions, labels)
        assert metric.compute().item() == pytest.approx(theirs, abs=1e-5)
