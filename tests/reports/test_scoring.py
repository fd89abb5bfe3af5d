"""Scoring: figures where it is clear what outputs are held against, and a reason where it is not."""

import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet
from lightning_hypernet.reports import measure, write_report
from lightning_hypernet.reports.scoring import as_classes


def made(target, *shape, **options):
    torch.manual_seed(0)
    return Hypernet(target, torch.randn(2, *shape), members=3, **options).eval()


def outputs_of(hypernet, x):
    with torch.no_grad():
        return hypernet.run(hypernet.member_population(), x)


@pytest.mark.parametrize("deep", [False, True])
def test_measuring_draws_no_random_numbers_of_torch_python_numpy_and_the_loader(deep):
    hypernet, own = made(nn.Linear(4, 3), 4), torch.Generator().manual_seed(3)

    class Data(TensorDataset):
        def __getitem__(self, index):
            random.random()
            numpy.random.rand()
            return super().__getitem__(index)

    loader = DataLoader(Data(torch.randn(8, 4), torch.randint(0, 3, (8,))), 4, shuffle=True, generator=own)
    plain = DataLoader(loader.dataset, 4)
    for one in (loader, plain):
        before = torch.get_rng_state(), own.get_state(), random.getstate(), numpy.random.get_state()[1].copy()
        place = numpy.random.get_state()[2]
        measure(hypernet, one, deep=deep)
        assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(own.get_state(), before[1])
        assert random.getstate() == before[2]
        assert numpy.array_equal(numpy.random.get_state()[1], before[3]) and numpy.random.get_state()[2] == place


class Tokens(nn.Module):
    """Outputs ``(batch, tokens, classes)``."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(4, classes)

    def forward(self, x):
        return self.layer(x)


def test_the_axis_of_the_classes_is_the_one_that_the_reduction_names():
    hypernet, x = made(Tokens(6), 6, 4, reduce={"name": "mean", "dim": -1}), torch.randn(32, 6, 4)
    labels = outputs_of(hypernet, x).softmax(-1).mean(0).argmax(-1)
    found = measure(hypernet, [(x, labels)], deep=False)
    assert found.kind == "classes" and found.examples == 32 * 6 and found.figures["ensemble_accuracy"] == 1


def test_labels_tell_the_axis_where_one_alone_fits():
    hypernet, x = made(Tokens(6), 5, 4), torch.randn(32, 5, 4)
    labels = outputs_of(hypernet, x).softmax(-1).mean(0).argmax(-1)
    assert measure(hypernet, [(x, labels)], deep=False).figures["ensemble_accuracy"] == 1


def test_an_axis_that_is_not_clear_is_told_and_not_guessed():
    hypernet, x = made(Tokens(6), 6, 4), torch.randn(8, 6, 4)
    found = measure(hypernet, [(x, torch.randint(0, 6, (8, 6)))], deep=False)
    assert found.kind == "outputs" and set(found.figures) == {"spread", "weight_cosine"}
    assert "it is not clear which axis of outputs (8, 6, 6) holds the classes" in found.left_out["figures"]


@pytest.mark.parametrize("form", [lambda y: y, lambda y: y[:, None], lambda y: y[:, None].float(), lambda y: y.bool()])
def test_one_logit_with_labels_of_0_and_1_is_of_two_classes(form):
    hypernet, x = made(nn.Linear(4, 1), 4), 3 * torch.randn(64, 4)
    y = torch.randint(0, 2, (64,))
    found = measure(hypernet, [(x, form(y))])
    p = outputs_of(hypernet, x).double().sigmoid().mean(0).squeeze(1)
    nll = -torch.where(y == 1, p, 1 - p).log().mean()
    assert found.kind == "classes"
    assert found.figures["ensemble_nll"] == pytest.approx(float(nll), rel=1e-5)
    assert found.figures["ensemble_accuracy"] == pytest.approx(float(((p > 0.5).long() == y).float().mean()))
    assert found.paths is None


def test_numbers_that_begin_with_a_batch_of_0_and_1_are_numbers():
    hypernet, x = made(nn.Linear(4, 1), 4), torch.randn(6, 4)
    targets = [torch.tensor([0, 1, 1.0]), torch.tensor([0.5, 2, 1])]
    found = measure(hypernet, [(x[:3], targets[0]), (x[3:], targets[1])], deep=False)
    error = outputs_of(hypernet, x).mean(0).squeeze(1) - torch.cat(targets)
    assert found.kind == "numbers" and found.figures["ensemble_rmse"] == pytest.approx(float(error.square().mean().sqrt()))


def test_one_output_in_0_to_1_may_be_a_probability_and_is_told():
    hypernet, x = made(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), 4), torch.randn(8, 4)
    found = measure(hypernet, [(x, torch.randint(0, 2, (8,)))], deep=False)
    assert found.kind == "outputs" and "may be a logit or a probability" in found.left_out["figures"]


@pytest.mark.parametrize(
    ("classes", "targets", "reason"),
    [
        (5, torch.rand(64, 5).softmax(-1), "probabilities of classes: give labels"),
        (5, torch.eye(5)[torch.arange(64) % 5].long(), "several for each example"),
        (2, torch.randn(64, 1), "targets must be (64, 2)"),
        (2, torch.randn(64), "targets must be (64, 2)"),
        (2, torch.zeros(64, 3).long(), "labels (64, 3) do not fit outputs (64, 2)"),
        (2, [{"boxes": 1}] * 64, "the targets are no tensor but a list"),
    ],
)
def test_targets_that_do_not_fit_get_no_figure_but_a_reason(classes, targets, reason, tmp_path):
    hypernet, x = made(nn.Linear(4, classes), 4), torch.randn(64, 4)
    found = measure(hypernet, [(x, targets)], deep=False)
    assert found.kind == "outputs" and set(found.figures) == {"spread", "weight_cosine"}
    assert reason in found.left_out["figures"]
    page = write_report(hypernet, [(x, targets)], tmp_path / "page.html").read_text()
    assert "Left out: figures: " in page and "Nothing is said of how good the networks are: " in page
    assert "Nobody said what is right" not in page


def test_axes_of_other_order_are_never_subtracted():
    hypernet = made(Tokens(2), 6, 4)
    found = measure(hypernet, [(torch.randn(8, 6, 4), torch.randn(8, 2, 6))], deep=False)
    assert "ensemble_rmse" not in found.figures and "targets must be (8, 6, 2)" in found.left_out["figures"]


def test_labels_of_no_class_are_refused_and_those_of_minus_100_left_out():
    hypernet, x = made(nn.Conv2d(3, 4, 1), 3, 5, 7), torch.randn(2, 3, 5, 7)
    labels = torch.randint(0, 4, (2, 5, 7))
    labels[0, 0, 0] = 255
    with pytest.raises(ValueError, match="labels must lie in 0 to 3, not 0 to 255"):
        measure(hypernet, [(x, labels)], deep=False)
    labels[0, 0, 0] = -100
    assert measure(hypernet, [(x, labels)], deep=False).examples == 69
    assert measure(hypernet, [(x, labels[:, None])], deep=False).examples == 69


def test_examples_labelled_minus_100_count_for_nothing():
    hypernet, x = made(nn.Linear(4, 3), 4), torch.randn(8, 4)
    y = torch.randint(0, 3, (8,))
    masked = torch.cat([y[:5], torch.full((3,), -100)])
    found, expected = measure(hypernet, [(x, masked)]), measure(hypernet, [(x[:5], y[:5])])
    assert found.figures == pytest.approx(expected.figures, rel=1e-5) and found.paths is None
    with pytest.raises(ValueError, match="no labels but -100"):
        measure(hypernet, [(x, torch.full((8,), -100))])


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, first, second):
        return self.layer(first) + second


def test_the_last_part_of_a_batch_is_its_targets():
    torch.manual_seed(0)
    hypernet = Hypernet(Sum(), (torch.randn(2, 4), torch.randn(2, 3)), members=3).eval()
    first, second = torch.randn(32, 4), torch.randn(32, 3)
    with torch.no_grad():
        labels = hypernet.run(hypernet.member_population(), first, second).softmax(-1).mean(0).argmax(-1)
    found = measure(hypernet, [(first, second, labels)])
    assert found.kind == "classes" and found.figures["ensemble_accuracy"] == 1


def test_a_function_tells_where_the_targets_are(tmp_path):
    hypernet, x, y = made(nn.Linear(4, 3), 4), torch.randn(32, 4), torch.randint(0, 3, (32,))
    batch = {"input": x, "cls": y}
    told = measure(hypernet, [batch], targets=lambda batch: batch["cls"])
    assert told.figures == pytest.approx(measure(hypernet, [(x, y)]).figures)
    assert "in a batch of input, cls nothing is named targets" in measure(hypernet, [batch], deep=False).left_out["figures"]
    page = write_report(hypernet, [batch], tmp_path / "page.html", targets=lambda batch: batch["cls"]).read_text()
    assert "Negative" not in page and "negative log-likelihood" in page
    with pytest.raises(TypeError, match="targets must be a function"):
        measure(hypernet, [batch], targets="cls")
    with pytest.raises(TypeError, match="targets must give a tensor of a batch, not a list"):
        measure(hypernet, [batch], targets=lambda batch: [1])


class Named(nn.Module):
    def __init__(self, *names):
        super().__init__()
        self.names, self.layer, self.head = names, nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        features = self.layer(x)
        return dict(zip(self.names, (features, self.head(features)), strict=True))


@pytest.mark.parametrize("name", ["logits", "prediction"])
def test_of_named_outputs_those_are_measured_whose_name_says_what_they_are(name):
    hypernet, x = made(Named("features", name), 4), torch.randn(32, 4)
    labels = outputs_of(hypernet, x)[name].softmax(-1).mean(0).argmax(-1)
    found = measure(hypernet, [(x, labels)])
    assert found.figures["ensemble_accuracy"] == 1 and found.paths is None


def test_of_other_outputs_none_is_guessed():
    found = measure(made(Named("features", "head"), 4), [(torch.randn(8, 4), torch.randint(0, 3, (8,)))], deep=False)
    assert found.kind == "weights" and "a mapping of features, head" in found.left_out["outputs"]


class Scaled(nn.Module):
    """Logits, all of which lie in 0 to 1."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).sigmoid()


def test_logits_in_0_to_1_are_no_probabilities_unless_they_sum_to_1():
    x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))
    for target, read in (
        (Scaled(), lambda one: one.softmax(-1)),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), lambda one: one),
    ):
        hypernet = made(target, 4)
        p = read(outputs_of(hypernet, x).double()).mean(0)
        expected = -p.gather(1, y[:, None]).log().mean()
        found = measure(hypernet, [(x[:20], y[:20]), (x[20:], y[20:])], deep=False)
        assert found.figures["ensemble_nll"] == pytest.approx(float(expected), rel=1e-5)


def test_rounded_probabilities_are_given_to_metrics_as_ones_that_sum_to_1():
    torch.manual_seed(0)
    outputs, labels = torch.randn(3, 50, 5).softmax(-1).to(torch.bfloat16), torch.randint(0, 5, (50,))
    found, _ = as_classes(outputs, labels)
    assert found.dtype == torch.float32 and (found.sum(-1) - 1).abs().max() < 1e-6
    assert torch.allclose(found, outputs.float(), atol=0.02)


def test_one_rank_measures_without_the_others(monkeypatch):
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    found = measure(made(nn.Linear(4, 3), 4), [(torch.randn(8, 4), torch.randint(0, 3, (8,)))], deep=False)
    assert found.kind == "classes"
