"""What `Ensemble.predict` gives: against loops over members, whatever the ensemble's own way of joining, and for one member."""

import math

import matplotlib as mpl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet
from lightning_hypernet.uncertainty import ClassPrediction, NumberPrediction
from lightning_hypernet.uncertainty.reading import Reading

mpl.use("Agg")


class Pair(nn.Module):
    """Means and log variances of two numbers, as a pair or by name."""

    def __init__(self, named=False):
        super().__init__()
        self.layer, self.named = nn.Linear(4, 4), named

    def forward(self, x):
        mean, log_variance = self.layer(x).chunk(2, 1)
        return {"log_variance": log_variance, "mean": mean} if self.named else (mean, log_variance)


def ensemble(target, members=4, **options):
    torch.manual_seed(0)
    hypernet = Hypernet(target.double(), execution="loop", generator={"gain": 1.0}, **options).eval()
    made = hypernet.ensemble(members)
    for value in made.weights.tensors().values():
        value.mul_(3)  # so that members are sure of what they say, each of something else
    return made


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def entropy(shares):
    return -sum(float(one) * math.log(float(one)) for one in shares if one > 0)


# Classes


@pytest.mark.parametrize("reduce", ["mean", "log_mean_prob", "majority", None, {"name": "mean", "dim": -1}])
def test_entropies_are_those_of_a_loop_whatever_the_ensemble_joins(reduce):
    networks, x = ensemble(nn.Linear(4, 3), reduce=reduce), inputs(6, 4)
    prediction = networks.predict(x)
    members = networks.members(x).softmax(-1)
    torch.testing.assert_close(prediction.members, members)
    torch.testing.assert_close(prediction.mean, members.mean(0))
    for index in range(6):
        total = entropy(members[:, index].mean(0))
        aleatoric = sum(entropy(one) for one in members[:, index]) / 4
        assert prediction.total[index].item() == pytest.approx(total, abs=1e-12)
        assert prediction.aleatoric[index].item() == pytest.approx(aleatoric, abs=1e-12)
        assert prediction.epistemic[index].item() == pytest.approx(total - aleatoric, abs=1e-12)
    assert prediction.epistemic.max() > 1e-2
    assert torch.equal(prediction.label, members.mean(0).argmax(-1))
    assert torch.equal(prediction.confidence, prediction.mean.amax(-1))
    assert len(prediction) == 6


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_calibrated_parts_are_those_of_the_joint_distribution_that_keeps_the_shares_of_members(temperature):
    logs = (inputs(3, 5, 4) * 4).log_softmax(-1)
    prediction = ClassPrediction(logs, temperature=temperature)
    mean = logs.exp().mean(0)
    wanted = mean.pow(1 / temperature) / mean.pow(1 / temperature).sum(-1, keepdim=True)
    torch.testing.assert_close(prediction.mean, wanted)
    for index in range(5):
        joint = wanted[index] * logs[:, index].exp() / logs[:, index].exp().sum(0)
        assert joint.sum().item() == pytest.approx(1)
        member, label = joint.sum(1), joint.sum(0)
        information = sum(
            joint[m, y] * (joint[m, y] / (member[m] * label[y])).log() for m in range(3) for y in range(4) if joint[m, y] > 0
        )
        assert prediction.epistemic[index].item() == pytest.approx(information.item(), abs=1e-10)
        assert prediction.total[index].item() == pytest.approx(entropy(label), abs=1e-10)
    assert (prediction.aleatoric >= 0).all()
    torch.testing.assert_close(prediction.aleatoric + prediction.epistemic, prediction.total)


def test_maps_have_an_uncertainty_for_every_pixel():
    networks, x = ensemble(nn.Conv2d(1, 3, 1)), inputs(2, 1, 4, 5)
    prediction = networks.predict(x)
    assert prediction.mean.shape == (2, 3, 4, 5)
    assert prediction.total.shape == prediction.epistemic.shape == prediction.label.shape == (2, 4, 5)
    logits = networks.members(x)[:, 1, :, 2, 3]
    alone = ClassPrediction(logits[:, None].log_softmax(-1))
    torch.testing.assert_close(prediction.epistemic[1, 2, 3], alone.epistemic[0])
    torch.testing.assert_close(prediction.mean[1, :, 2, 3], alone.mean[0])


def test_classes_lie_where_the_ensemble_or_the_call_says():
    x = inputs(2, 5, 4)
    networks = ensemble(nn.Linear(4, 3), reduce={"name": "log_mean_prob", "dim": -1})
    named = networks.predict(x)
    networks.reduce = "mean"
    for prediction in (named, networks.predict(x, dim=-1), networks.predict(x, dim=2)):
        assert prediction.mean.shape == (2, 5, 3) and prediction.total.shape == (2, 5)
        torch.testing.assert_close(prediction.mean, networks.members(x).softmax(-1).mean(0))
    for task in (None, "classification"):
        with pytest.raises(ValueError, match=r"not clear which axis of outputs \(2, 5, 3\) holds the classes: pass dim=1 or"):
            networks.predict(x, task=task)
    with pytest.raises(ValueError, match=r"dim=3 names no axis of classes in outputs \(2, 5, 3\)"):
        networks.predict(x, dim=3)


@pytest.mark.parametrize("flat", [True, False])
def test_one_logit_is_of_two_classes(flat):
    networks = ensemble(nn.Sequential(nn.Linear(4, 1), *([nn.Flatten(0)] if flat else [])))
    x = inputs(6, 4)
    with pytest.raises(ValueError, match="logits of one of two classes, or numbers: pass task='classification'"):
        networks.predict(x)
    prediction = networks.predict(x, task="classification")
    shares = networks.members(x).reshape(4, 6).sigmoid().mean(0)
    torch.testing.assert_close(prediction.mean, torch.stack([1 - shares, shares], 1))


def test_probabilities_and_log_probabilities_are_read_as_what_they_are():
    x = inputs(6, 4)
    plain = ensemble(nn.Linear(4, 3)).predict(x)
    for last in (nn.Softmax(1), nn.LogSoftmax(1)):
        prediction = ensemble(nn.Sequential(nn.Linear(4, 3), last)).predict(x)
        torch.testing.assert_close(prediction.mean.sum(1), torch.ones(6).double())
        torch.testing.assert_close(prediction.mean, prediction.members.mean(0))
        assert not torch.allclose(prediction.members, prediction.members.softmax(-1), atol=1e-2)
    assert plain.mean.shape == (6, 3)
    logs = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]).log()
    sure = ClassPrediction(logs, temperature=2.0)
    assert sure.epistemic.item() == pytest.approx(math.log(2), abs=1e-6) and sure.aleatoric.item() == pytest.approx(0, abs=1e-6)


def test_a_class_that_every_member_rules_out_stays_ruled_out():
    logs = (inputs(3, 5, 4) * 4).index_fill(-1, torch.tensor(2), -math.inf).log_softmax(-1)
    for temperature in (1.0, 3.0):
        prediction = ClassPrediction(logs, temperature=temperature)
        kept = ClassPrediction(logs[..., [0, 1, 3]], temperature=temperature)
        assert not prediction.mean[:, 2].any()
        for name in ("total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(prediction, name), getattr(kept, name))


# Numbers


HEADS = {
    "log_variance": lambda raw: raw.exp(),
    "log_std": lambda raw: (2 * raw).exp(),
    "softplus": F.softplus,
    "variance": lambda raw: raw,
    "std": lambda raw: raw**2,
}


@pytest.mark.parametrize("variance", HEADS)
def test_moments_are_those_of_the_law_of_total_variance(variance):
    positive = variance in ("variance", "std")
    networks = ensemble(nn.Sequential(nn.Linear(4, 6), *([nn.Softplus()] if positive else [])))
    x = inputs(5, 4)
    prediction = networks.predict(x, task="regression", variance=variance)
    outputs = networks.members(x)
    means, variances = outputs[..., :3], HEADS[variance](outputs[..., 3:])
    assert isinstance(prediction, NumberPrediction) and prediction.mean.shape == (5, 3)
    torch.testing.assert_close(prediction.mean, means.mean(0))
    second = (variances + means.square()).mean(0)
    torch.testing.assert_close(prediction.total, second - means.mean(0).square())
    torch.testing.assert_close(prediction.aleatoric, variances.mean(0))
    torch.testing.assert_close(prediction.epistemic, means.var(0, correction=0))
    torch.testing.assert_close(prediction.std.square(), prediction.total)


def test_a_pair_and_a_mapping_are_read_as_one_tensor_is():
    x = inputs(5, 4)
    whole = ensemble(nn.Linear(4, 4)).predict(x, task="regression", variance="log_variance")
    for named in (True, False):
        target = Pair(named)
        prediction = ensemble(target).predict(x, task="regression", variance="log_variance")
        outputs = ensemble(target).members(x)
        mean, raw = (outputs["mean"], outputs["log_variance"]) if named else outputs
        torch.testing.assert_close(prediction.mean, mean.mean(0))
        torch.testing.assert_close(prediction.aleatoric, raw.exp().mean(0))
        assert prediction.mean.shape == whole.mean.shape


def test_means_alone_have_the_variance_of_the_noise_that_is_named_or_none():
    networks, x = ensemble(nn.Linear(4, 2)), inputs(5, 4)
    alone, noisy = networks.predict(x, task="regression"), networks.predict(x, task="regression", variance=0.25)
    assert not alone.aleatoric.any() and (noisy.aleatoric == 0.25).all()
    torch.testing.assert_close(alone.total, networks.members(x).var(0, correction=0))
    torch.testing.assert_close(noisy.total, alone.total + 0.25)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_an_interval_holds_its_share_of_the_mixture(level):
    torch.manual_seed(0)
    prediction = NumberPrediction(torch.randn(3, 4).double() * 3, torch.rand(3, 4).double() + 0.1)
    low, high = prediction.interval(level)
    drawn = (prediction.means[..., None] + prediction.variances[..., None].sqrt() * torch.randn(3, 4, 50_000)).movedim(1, 0)
    within = ((drawn > low[:, None, None]) & (drawn < high[:, None, None])).double().mean((1, 2))
    torch.testing.assert_close(within, torch.full((4,), level).double(), atol=6e-3, rtol=0)
    torch.testing.assert_close(prediction.quantile((1 - level) / 2), low)


# One member


def test_an_ensemble_of_one_predicts_what_its_network_does():
    x = inputs(6, 4)
    networks = ensemble(nn.Linear(4, 3), members=1)
    (network,) = networks.materialize()
    for temperature in (1.0, 0.4):
        prediction = ClassPrediction(networks.predict(x).log_members, temperature=temperature)
        expected = (network(x).softmax(-1).log() / temperature).softmax(-1)
        torch.testing.assert_close(prediction.mean, expected)
        assert torch.equal(prediction.total, prediction.aleatoric) and not prediction.epistemic.any()
        torch.testing.assert_close(prediction.total, torch.special.entr(expected).sum(-1))


def test_a_regression_of_one_is_its_network():
    x = inputs(6, 4)
    networks = ensemble(nn.Linear(4, 2), members=1)
    (network,) = networks.materialize()
    prediction = networks.predict(x, task="regression", variance="log_variance")
    mean, raw = network(x).chunk(2, 1)
    assert torch.equal(prediction.mean, mean)
    assert torch.equal(prediction.total, raw.exp()) and not prediction.epistemic.any()
    low, high = prediction.interval(0.9)
    half = torch.special.ndtri(torch.tensor(0.95).double()) * raw.exp().sqrt()
    torch.testing.assert_close(low, mean - half)
    torch.testing.assert_close(high, mean + half)


# Pictures


def test_predictions_draw_themselves():
    classes = ensemble(nn.Linear(4, 3)).predict(inputs(6, 4))
    maps = ensemble(nn.Conv2d(1, 3, 1)).predict(inputs(2, 1, 4, 5))
    numbers = ensemble(nn.Linear(4, 2)).predict(inputs(6, 4), task="regression", variance="log_variance")
    fields = ensemble(nn.Conv2d(1, 2, 1)).predict(inputs(2, 1, 4, 5), task="regression", variance="log_variance")
    for prediction, count in ((classes, None), (maps, 4), (numbers, None), (fields, 4)):
        figure, axes = prediction.plot()
        assert (len(axes) if count else axes in figure.axes) == (count or True)
        mpl.pyplot.close(figure)
        figure, ax = mpl.pyplot.subplots()
        assert prediction.plot(ax=ax) == (figure, ax)
        assert ax.has_data()
        mpl.pyplot.close(figure)
    figure, axes = numbers.plot(x=torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]), level=0.5)
    assert axes.get_legend_handles_labels()[1] == ["mean", "50 %"]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    mpl.pyplot.close(figure)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "classify"}, "task must be one of 'classification', 'regression', not 'classify'; did you mean"),
        ({"task": "regression", "variance": "logvariance"}, "variance must be one of 'log_variance', .*; did you mean"),
        ({"task": "regression", "variance": 0}, "variance must be a number, above 0, not 0"),
        ({"variance": "std"}, "variance is of task='regression'"),
        ({"dim": "last"}, "dim must be a whole number, not 'last'"),
        ({"task": "regression", "variance": "std"}, "read as variance='std', the outputs hold variances that are not positive"),
        ({"task": "regression", "variance": "std", "dim": 4}, "do not fall into means and variances along dim=4"),
    ],
)
def test_what_can_not_be_read_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        ensemble(nn.Linear(4, 2)).predict(inputs(5, 4), **options)


class Mixed(nn.Module):
    """Part of it is not generated, and its words are those of `predict`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))

    def forward(self, x, dim=0):
        return self.net(x) + dim


def test_a_prediction_has_no_graph_no_dropout_and_no_words_of_the_targets_own():
    torch.manual_seed(0)
    ensemble, x = Hypernet(Mixed(), exclude=["net.0.bias"]).ensemble(3), torch.randn(5, 4)
    expected = ensemble.predict(x)
    assert not expected.mean.requires_grad
    ensemble.train()
    torch.testing.assert_close(ensemble.predict(x).mean, expected.mean)
    assert ensemble.training
    with pytest.raises(ValueError, match="dim= is an argument of Mixed too"):
        ensemble.predict(x, dim=1)


def test_a_mapping_that_names_its_second_half_is_taken_at_its_word():
    outputs = {"mean": torch.zeros(2, 3, 1), "log_std": torch.ones(2, 3, 1)}
    means, variances = Reading("regression", "log_std", 1).numbers(outputs)
    torch.testing.assert_close(variances, torch.full_like(means, math.exp(2)))
    with pytest.raises(ValueError, match="a mean and a log_std, and variance='variance' was passed: pass 'log_std'"):
        Reading("regression", "variance", 1).numbers(outputs)


def test_outputs_that_are_no_predictions_are_told():
    x = inputs(5, 4)
    with pytest.raises(ValueError, match=r"outputs \(5, 3\) do not fall into means and variances along dim=1"):
        ensemble(nn.Linear(4, 3)).predict(x, task="regression", variance="softplus")
    with pytest.raises(TypeError, match="must be a tensor of logits, not a tuple"):
        ensemble(Pair()).predict(x)
    with pytest.raises(ValueError, match="joins class probabilities, reduce='log_mean_prob', and the task is 'regression'"):
        ensemble(nn.Linear(4, 3), reduce="log_mean_prob").predict(x, task="regression")
    with pytest.raises(ValueError, match="outputs hold NaN or infinite numbers"):
        ensemble(nn.Linear(4, 3)).predict(x * math.nan)
    with pytest.raises(ValueError, match="whose logits are all minus infinity"):
        Reading("classification", None, 1).log_members(torch.full((2, 3, 4), -math.inf))
    prediction = ensemble(nn.Linear(4, 3)).predict(x)
    with pytest.raises(ValueError, match=r"no scores for conformal sets: call ensemble.conform\(loader\) first"):
        prediction.sets(0.9)
    with pytest.raises(ValueError, match="level must lie"):
        ensemble(nn.Linear(4, 3)).predict(x, task="regression").interval(1.0)
