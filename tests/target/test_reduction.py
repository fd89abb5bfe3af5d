"""Reductions: one logit, maps, votes; refused where they would be wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet, HypernetCallback
from lightning_hypernet.diversity import EnsembleLoss
from lightning_hypernet.target.reduction import reduce_outputs
from tests.test_callback import Classifier, fit

torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 1, 4, 4)])
def test_one_logit_is_a_sigmoid(shape):
    logits = torch.randn(*shape, dtype=torch.float64) * 5
    joined = reduce_outputs(logits, "log_mean_prob")
    assert joined.shape == logits.shape[1:]
    assert torch.allclose(joined.sigmoid(), logits.sigmoid().mean(0), atol=1e-12)
    assert torch.allclose(reduce_outputs(logits, "majority"), (logits > 0).double().mean(0))
    far = torch.full((3, 2, 1), 800.0, dtype=torch.float64)
    assert torch.isfinite(reduce_outputs(far, "log_mean_prob")).all()


def test_maps_have_their_classes_along_axis_1():
    logits = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    joined = reduce_outputs(logits, "log_mean_prob")
    assert joined.shape == (2, 4, 5, 6)
    assert torch.allclose(joined.exp(), logits.softmax(2).mean(0))
    assert torch.allclose(joined.exp().sum(1), torch.ones(2, 5, 6, dtype=torch.float64))
    votes = reduce_outputs(logits, "majority")
    assert torch.allclose(votes, F.one_hot(logits.argmax(2), 4).movedim(-1, 2).double().mean(0))


def test_the_axis_of_classes_is_named():
    logits = torch.randn(3, 2, 7, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"which axis of outputs \(2, 7, 4\) holds the classes: name it, as in reduce="):
        reduce_outputs(logits, "log_mean_prob")
    for dim, axis in ((-1, 3), (2, 3), (1, 2)):
        joined = reduce_outputs(logits, {"name": "log_mean_prob", "dim": dim})
        assert torch.allclose(joined.exp(), logits.softmax(axis).mean(0))
    for dim in (0, 5, -3):
        with pytest.raises(ValueError, match="have no classes there"):
            reduce_outputs(logits, {"name": "majority", "dim": dim})
    for wrong in ("probs", {"name": "mean", "axis": 1}, {"name": "majority", "dim": "last"}, 3):
        with pytest.raises(ValueError, match="reduce must be one of"):
            reduce_outputs(logits, wrong)
    hypernet = Hypernet(nn.Linear(3, 2), reduce={"name": "log_mean_prob", "dim": -1}).eval()
    assert torch.allclose(hypernet(torch.randn(5, 3)).exp().sum(1), torch.ones(5), atol=1e-6)


def test_complex_numbers_are_averaged():
    values = torch.randn(3, 4, dtype=torch.complex128)
    assert torch.allclose(reduce_outputs(values, "mean"), values.mean(0))
    with pytest.raises(ValueError, match="complex outputs are joined by 'mean'"):
        reduce_outputs(values, "majority")


class Detector(nn.Module):
    """As many boxes as the network says."""

    def __init__(self, fixed):
        super().__init__()
        self.layer, self.fixed = nn.Linear(3, 4), fixed

    def forward(self, images, context=None):
        boxes = [self.layer(image.mean((1, 2))) for image in images]
        counts = [1 if self.fixed else 1 + int(box.argmax()) for box in boxes]
        return [{"boxes": box.expand(count, 4)} for box, count in zip(boxes, counts, strict=True)]


@pytest.mark.parametrize("fixed", [False, True])
def test_members_whose_outputs_differ_in_shape(fixed):
    """Also where they happen to agree."""
    torch.manual_seed(0)
    hypernet = Hypernet(Detector(fixed), members=3, execution="loop").eval()
    images = [torch.randn(3, 8, 8) for _ in range(4)]
    for call in (hypernet, hypernet.ensemble(3)):
        with pytest.raises(ValueError, match="reduce=None gives what each of them returns"):
            call(images)
    hypernet.reduce = None
    outputs = hypernet(images)
    members = [member.eval()(images) for member in hypernet.materialize(hypernet.member_population())]
    for image in range(4):
        for index, member in enumerate(members):
            assert torch.allclose(outputs[image]["boxes"][index], member[image]["boxes"], atol=1e-6)


class Regression(Classifier):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.model(batch[0]), batch[1])


def regression(kind):
    x, y = torch.randn(32, 4), torch.randint(0, 2, (32, 3)).float() if kind == "labels" else torch.randn(32, 3)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)


@pytest.mark.parametrize(("kind", "words"), [("numbers", "real numbers"), ("labels", "several labels each")])
def test_regression_is_refused(kind, words):
    """Where the targets show it: at the first step of a callback, and in the loss of the joined prediction."""
    for name in ("log_mean_prob", "majority"):
        callback = HypernetCallback(reduce=name, samples=2)
        with pytest.raises(ValueError, match=f"reduce = '{name}' joins class probabilities, and the targets are {words}"):
            fit(Regression(norm=False), callback=callback, loader=regression(kind), limit_val_batches=0)
    with pytest.raises(RuntimeError, match=f"join = 'log_mean_prob' joins class probabilities, and the targets are {words}"):
        fit(
            Regression(norm=False),
            callback=HypernetCallback(diversity={"ensemble": {"loss": "mse_loss"}}, samples=2),
            loader=regression(kind),
            limit_val_batches=0,
        )


def test_soft_labels_are_no_regression():
    class Soft(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.model(batch[0]), batch[1])

    x, y = torch.randn(32, 4), torch.rand(32, 3).softmax(1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
    fit(Soft(), callback=HypernetCallback(reduce="log_mean_prob", samples=2, diversity={"ensemble": 0.1}), loader=loader,
        limit_val_batches=0, max_epochs=1)  # fmt: skip


def test_the_loss_of_a_joined_logit_by_hand():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 1), samples=4).train()
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8, 1)).float()
    hypernet(x)
    hypernet.population.targets = y
    outputs = hypernet.population.outputs
    expected = F.binary_cross_entropy(outputs.sigmoid().mean(0), y)
    loss = EnsembleLoss(loss="binary_cross_entropy_with_logits")(hypernet.population)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_of_joined_maps_by_hand():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Conv2d(3, 4, 1), samples=3).train()
    x, y = torch.randn(6, 3, 5, 5), torch.randint(0, 4, (6, 5, 5))
    hypernet(x)
    hypernet.population.targets = y
    expected = F.nll_loss(hypernet.population.outputs.softmax(2).mean(0).log(), y)
    assert EnsembleLoss()(hypernet.population).item() == pytest.approx(expected.item(), rel=1e-5)
