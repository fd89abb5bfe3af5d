import copy
from dataclasses import replace

import matplotlib as mpl
import pytest
import pytorch_lightning as pl
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_hypernet import Hypernet
from lightning_hypernet.analysis import (
    accuracies,
    adversarial,
    averaging,
    fgsm,
    filter_images,
    ood,
    paths,
    pgd,
    scatter,
    targeted_sign,
)
from lightning_hypernet.distillation import Distillation
from lightning_hypernet.symmetry.alignment import align

mpl.use("Agg")


def small():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


@pytest.fixture(scope="module")
def trained():
    """A Hypernet that tells three kinds of 4x4 images apart, and the loader."""
    return train(seed=0)


def train(seed):
    torch.manual_seed(seed)
    y = torch.arange(96) % 3
    x = torch.randn(96, 1, 4, 4) * 0.3
    x[torch.arange(96), 0, y] += 1
    loader = DataLoader(TensorDataset(x, y), 32)
    hypernet = Hypernet(
        small(), example_inputs=x[:2], samples=4, latent_dim=8, components=2, generator={"pace": 4, "gain": 2.0}
    ).train()  # whose networks come to differ in few steps
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=3e-3)
    for _ in range(120):
        loss = F.cross_entropy(hypernet(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return hypernet.eval(), loader


def drawn(result):
    figure, _ = result.plot()
    assert figure.axes
    mpl.pyplot.close(figure)


def test_accuracies_are_those_of_the_materialised_networks(trained):
    hypernet, loader = trained
    population = hypernet.sample(5)
    found = accuracies(hypernet, population, loader)
    x, y = loader.dataset.tensors
    expected = [(network.eval()(x).argmax(-1) == y).float().mean() for network in hypernet.materialize(population)]
    assert found.tolist() == pytest.approx([float(value) for value in expected])
    assert found.min() > 0.8
    with pytest.raises(ValueError, match="the loader is empty"):
        accuracies(hypernet, population, [])


@pytest.mark.parametrize("aligned", [False, True])
def test_both_paths_end_at_the_networks(trained, aligned):
    hypernet, loader = trained
    result = paths(hypernet, loader, pairs=3, points=5, aligned=aligned)
    assert result.direct.shape == result.interpolated.shape == (3, 5)
    assert torch.allclose(result.direct[:, [0, -1]], result.interpolated[:, [0, -1]], atol=0.02)
    assert result.interpolated.min() > 0.5
    drawn(result)


@pytest.mark.parametrize("aligned", [False, True])
def test_halfway_along_both_paths(aligned):
    hypernet, loader = train(seed=1)
    x, y = loader.dataset.tensors
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x + noise, y), 32)  # on which networks differ
    draws = hypernet.prior.draws
    result = paths(hypernet, loader, pairs=6, points=3, component=None, aligned=aligned)
    hypernet.prior.draws = draws
    one, other = hypernet.sample(6), hypernet.sample(6)
    start, end = (hypernet.symmetries.gauge(population.weights) for population in (one, other))
    found = []
    for last in (end, align(end, start, hypernet.symmetries.blocks)):
        middle = {name: (value + last[name]) / 2 for name, value in start.items()}
        found.append(accuracies(hypernet, replace(one, networks=one.networks.others(middle)), loader))
    curve = hypernet.decode(replace(other.latents, z=(one.latents.z + other.latents.z) / 2))
    assert not torch.allclose(found[0], found[1], atol=0.02)
    assert torch.allclose(result.direct[:, 1], found[aligned], atol=0.02)
    assert torch.allclose(result.interpolated[:, 1], accuracies(hypernet, curve, loader), atol=0.02)


def test_scatter_is_a_principal_component_analysis(trained):
    hypernet, _ = trained
    draws = hypernet.prior.draws
    result = scatter(hypernet, samples=50, dimensions=3)
    hypernet.prior.draws = draws
    vectors = hypernet.sample(50).gauged.detach().numpy()
    expected = PCA(3, svd_solver="full").fit(vectors)
    points = torch.tensor(expected.transform(vectors))
    assert torch.allclose(result.points.abs(), points.abs().float(), atol=1e-3)
    assert result.explained.tolist() == pytest.approx(expected.explained_variance_ratio_.tolist(), rel=1e-3)
    drawn(result)
    assert scatter(hypernet, 20, 2, bank="0", filter=1).points.shape == (20, 2)
    size = next(bank.filter_size for bank in hypernet.banks if bank.name == "0")
    assert scatter(hypernet, 20, 99, bank="0", filter=1).points.shape == (20, min(20, size))
    with pytest.raises(ValueError, match="there is no bank 'conv'; there are 0, 4"):
        scatter(hypernet, 20, bank="conv")
    with pytest.raises(ValueError, match="has filters 0 to 2, not 3"):
        scatter(hypernet, 20, bank="0", filter=3)
    with pytest.raises(ValueError, match="name the bank too"):
        scatter(hypernet, 20, filter=0)


def test_filter_images(trained):
    hypernet, _ = trained
    draws = hypernet.prior.draws
    result = filter_images(hypernet, "0.weight", filter=2, samples=7)
    hypernet.prior.draws = draws
    assert result.images.shape == (7, 3, 3)
    assert torch.allclose(result.images, hypernet.symmetries.gauge(hypernet.sample(7).weights)["0.weight"][:, 2, 0])
    drawn(result)
    with pytest.raises(ValueError, match="'0.weight' has filters 0 to 2, not 3"):
        filter_images(hypernet, "0.weight", filter=3)
    with pytest.raises(ValueError, match="'0.weight' has channels 0 to 0, not -1"):
        filter_images(hypernet, "0.weight", channel=-1)
    drawn(filter_images(hypernet, "4.weight", samples=4))
    with pytest.raises(ValueError, match="is no generated weight of two or four axes; there are 0.weight, 4"):
        filter_images(hypernet, "1.weight")


@pytest.mark.parametrize("groups", [1, 2])
def test_filter_images_of_a_transposed_convolution(groups):
    layer = nn.ConvTranspose2d(2, 6, 3, groups=groups)
    hypernet = Hypernet(layer, gauge="none")
    shown = filter_images(hypernet, "weight", filter=5, channel=2 // groups - 1, samples=1).images[0]
    hypernet.prior.draws -= 1
    (network,) = hypernet.materialize(hypernet.sample(1))
    impulse = torch.zeros(1, 2, 1, 1)
    impulse[0, 1] = 1
    response = network(impulse) - network.bias.view(-1, 1, 1)
    assert torch.allclose(shown, response[0, 5], atol=1e-6)
    with pytest.raises(ValueError, match="'weight' has filters 0 to 5, not 6"):
        filter_images(hypernet, "weight", filter=6)


def test_attacks_on_a_linear_model():
    """Where the gradient is known by hand."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]])
    x, y = torch.tensor([[0.3, -0.2]]), torch.tensor([0])

    def model(inputs):
        return inputs @ weight.T

    p = model(x).softmax(-1)[0]
    slope = p @ weight - weight[0]
    assert torch.allclose(fgsm(model, x, y, 0.1), x + 0.1 * slope.sign())
    towards = p[1] * (weight[1] - p @ weight)
    assert torch.allclose(targeted_sign(model, x, torch.tensor([1]), 0.2), x + 0.2 * towards.sign())
    attacked = pgd(model, x, y, 0.1)
    assert (attacked - x).abs().max() <= 0.1 + 1e-6
    assert torch.allclose(attacked, fgsm(model, x, y, 0.1))


@pytest.mark.parametrize("attack", ["targeted", "fgsm", "pgd"])
def test_larger_attacks_succeed_more_often(trained, attack):
    hypernet, loader = trained
    torch.manual_seed(0)
    result = adversarial(hypernet, loader, (0.0, 0.2, 1.5), attack, ensemble=6)
    assert result.attacked[0] == 0
    assert result.attacked[2] > max(result.attacked[1] - 0.05, 0.3)
    assert 0.8 < result.clean <= 1
    drawn(result)
    both = adversarial(hypernet, loader, (1.5,), attack, attacked=5, ensemble=6)
    assert both.attacked > 0.3
    assert not hypernet.training


def test_attacks_are_counted_on_both(trained):
    """The networks drawn again by hand: what is attacked are five, what is given the examples two others."""
    hypernet, loader = trained
    batch = [next(iter(loader))]
    draws = hypernet.prior.draws
    result = adversarial(hypernet, batch, (0.4,), "fgsm", attacked=5, ensemble=2)
    hypernet.prior.draws = draws
    (x, y), populations = batch[0], (hypernet.sample(5), hypernet.sample(2))

    def probability(population, inputs):
        return hypernet.run(population, inputs).softmax(-1).mean(0)

    right = probability(populations[0], x).argmax(-1) == y
    x, y = x[right].requires_grad_(), y[right]
    loss = F.nll_loss(probability(populations[0], x).log(), y, reduction="sum")
    spoilt = (x + 0.4 * torch.autograd.grad(loss, x)[0].sign()).detach()
    for found, population in zip((result.attacked, result.transferred), populations, strict=True):
        wrong = (probability(population, spoilt).argmax(-1) != y).float().mean()
        assert found.item() == pytest.approx(wrong.item())
        assert 0 < wrong < 1
    assert result.attacked != result.transferred
    assert result.clean == pytest.approx(right.float().mean().item())
    with pytest.raises(ValueError, match="attack must be one of 'targeted', 'fgsm', 'pgd', not 'cw'"):
        adversarial(hypernet, batch, attack="cw")


def test_a_sure_network_can_be_attacked():
    weight = torch.tensor([[400.0, 0.0], [0.0, 400.0]])
    attacked = targeted_sign(lambda inputs: inputs @ weight, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), 0.1)
    assert torch.allclose(attacked, torch.tensor([[0.9, 0.1]]))


def test_modes_are_put_back(trained):
    hypernet, loader = copy.deepcopy(trained[0]).train(), trained[1]
    hypernet.update_statistics(x for x, _ in loader)
    hypernet.target[1].eval()
    accuracies(hypernet, hypernet.sample(2), loader)
    adversarial(hypernet, loader, (0.1,), ensemble=2)
    assert hypernet.training
    assert not hypernet.target[1].training


def test_noise_is_out_of_distribution(trained):
    hypernet, loader = trained
    torch.manual_seed(0)
    ensemble = hypernet.ensemble(10)
    ensemble.update_statistics(loader)
    result = ood(ensemble.members, loader, [torch.randn(40, 1, 4, 4) * 2])
    assert set(result.results) == {"entropy", "mutual_information"}
    assert result.results["mutual_information"]["auroc"] > 0.6
    for name, found in result.results.items():
        labels = [0] * len(result.inside[name]) + [1] * len(result.outside[name])
        values = torch.cat([result.inside[name], result.outside[name]]).double().numpy()
        false, true, _ = roc_curve(labels, values, drop_intermediate=False)
        assert found["auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-4)
        assert found["aupr"] == pytest.approx(average_precision_score(labels, values), abs=1e-4)
        assert found["fpr95"] == pytest.approx(false[true >= 0.95].min(), abs=1e-4)
    same = ood(ensemble.members, loader, loader).results["entropy"]
    assert same["auroc"] == pytest.approx(0.5)
    assert same["fpr95"] == pytest.approx(0.95, abs=0.05)
    drawn(result)


def test_averaging(trained):
    hypernet, loader = trained
    ensemble = hypernet.ensemble(10, component=0)
    ensemble.update_statistics(loader)
    result = averaging(ensemble, loader, (1, 5, 10, 20), loader)
    assert list(result.counts) == [1, 5, 10]
    assert result.average[0] == result.ensemble[0]
    assert len(ensemble[:5]) == 5
    x, y = loader.dataset.tensors
    average, joined = ensemble[:5].average(loader)(x), ensemble[:5].members(x).softmax(-1).mean(0)
    assert result.average[1] == (average.argmax(-1) == y).float().mean()
    assert result.ensemble[1] == (joined.argmax(-1) == y).float().mean()
    with pytest.raises(ValueError, match="the loader is empty"):
        averaging(ensemble, [], (2,), loader)
    with pytest.raises(ValueError, match="there are 10 members: give counts from 1 to that"):
        averaging(ensemble, loader, (20,), loader)
    with pytest.raises(TypeError, match="an ensemble is indexed by a slice, not by int"):
        ensemble[0]
    drawn(result)


def test_distillation_loss_by_hand(trained):
    hypernet, loader = trained
    ensemble = hypernet.ensemble(3)
    ensemble.update_statistics(loader)
    module = Distillation(ensemble.double(), small(), temperature=3.0, alpha=0.7).double().eval()
    module.log = lambda *_, **__: None
    x, y = (tensor[:8] for tensor in loader.dataset.tensors)
    loss = module.training_step((x.double(), y), 0)
    taught = (ensemble.members(x.double()) / 3).softmax(-1).mean(0)
    learnt = module.student(x.double())
    divergence = (taught * (taught.log() - (learnt / 3).softmax(-1).log())).sum(-1).mean()
    assert torch.allclose(loss, 0.3 * F.cross_entropy(learnt, y) + 0.7 * 9 * divergence)


def test_distillation_teaches_the_ensemble(trained):
    hypernet, loader = trained
    torch.manual_seed(0)
    ensemble = hypernet.ensemble(5)
    ensemble.update_statistics(loader)
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    module = Distillation(ensemble, small().eval(), lr=1e-2)
    assert module.student.training
    assert not any("weights" in name for name in module.state_dict())
    trainer = pl.Trainer(
        max_epochs=30, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    x, _ = loader.dataset.tensors
    with torch.no_grad():
        taught = ensemble.members(x).softmax(-1).mean(0)
        learnt = module.eval()(x).softmax(-1)
    assert (taught.argmax(-1) == learnt.argmax(-1)).float().mean() > 0.9
    assert all(torch.equal(value, before[name]) for name, value in ensemble.state_dict().items())
    with pytest.raises(ValueError, match="alpha must lie in 0 to 1"):
        Distillation(ensemble, small(), alpha=2.0)
