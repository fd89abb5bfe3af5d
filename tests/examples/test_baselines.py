"""The baselines of examples/baselines against exact answers and slow references."""

import importlib.machinery
import importlib.util
import itertools
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[2] / "examples" / "baselines"))
from ensembles import KINDS, order
from linearised import Linearised, installed
from noisy_adam import NoisyAdam
from noisy_kfac import NoisyKFAC
from swag import SWAG
from unfolding import inputs_of, matrix_of, outputs_of

ROOT = Path(__file__).parents[2]
NOISE, PRIOR = 0.3, 0.5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def regression(rows=60):
    """Correlated inputs, targets, a linear layer without bias, and its losses, those of targets that it draws among them."""
    x = torch.randn(rows, 4, dtype=torch.float64) @ (torch.eye(4, dtype=torch.float64) + 0.5)
    y = x @ torch.tensor([[1.0, -2.0, 0.5, 0.0]], dtype=torch.float64).T + NOISE**0.5 * torch.randn(
        rows, 1, dtype=torch.float64
    )
    layer = nn.Linear(4, 1, bias=False).double()

    def losses():
        return (layer(x) - y).square().squeeze(1) / (2 * NOISE)

    def sampled():
        out = layer(x)
        return (out - out.detach() - NOISE**0.5 * torch.randn_like(out)).square().squeeze(1) / (2 * NOISE)

    precision = x.T @ x / NOISE + torch.eye(4, dtype=torch.float64) / PRIOR
    return x, layer, losses, sampled, precision, torch.linalg.solve(precision, x.T @ y / NOISE).T


def descend(optimizer, losses, sampled, steps, scale):
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = min(0.3, scale / (1 + step))
        optimizer.step(losses, sampled)


def test_noisy_adam_finds_the_best_gaussian_of_independent_weights():
    """Of a Gaussian posterior that is the exact mean, with the diagonal of the exact precision."""
    _, layer, losses, sampled, precision, mean = regression()
    optimizer = NoisyAdam(layer.parameters(), 0.1, examples=60, variance=PRIOR, betas=(0.0, 0.997))
    descend(optimizer, losses, sampled, 1000, scale=12.0)
    deviation = precision.diagonal().rsqrt()
    assert ((layer.weight - mean).abs() < 0.3 * deviation).all()
    torch.testing.assert_close(optimizer.precisions()[0], precision.diagonal()[None], rtol=0.2, atol=0)
    assert (precision.diagonal() > 1.5 / torch.linalg.inv(precision).diagonal()).all(), "weights depend on each other"


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_squares_of_noisy_adam_are_the_fisher_matrix_of_one_example_whatever_the_batch(batch):
    """The mean over all labels that the network may draw."""
    x = torch.randn(batch, 2, dtype=torch.float64)
    layer = nn.Linear(2, 3).double()
    probabilities = layer(x).softmax(-1).detach()
    weight, bias = (torch.zeros_like(one) for one in layer.parameters())
    for labels in itertools.product(range(3), repeat=batch):
        optimizer = NoisyAdam(layer.parameters(), 0.1, examples=1, betas=(0.0, 0.0))
        optimizer.look(lambda labels=labels: F.cross_entropy(layer(x), torch.tensor(labels), reduction="none"))
        chance = math.prod(float(row[label]) for row, label in zip(probabilities, labels, strict=True))
        weight += chance * optimizer.squares[0]
        bias += chance * optimizer.squares[1]
    variance = probabilities * (1 - probabilities)
    torch.testing.assert_close(bias, variance.mean(0))
    torch.testing.assert_close(weight, variance.T @ x**2 / batch)


def test_steps_of_noisy_adam_are_those_of_the_formula():
    weights = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    slopes = torch.tensor([[1.0, 3.0], [2.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    optimizer = NoisyAdam([weights], 0.2, examples=5, kl=0.5, variance=2.0, damping=0.1, betas=(0.9, 0.8))
    mean, running, square, floor = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), 0.5 / (5 * 2.0)
    for step in (1, 2, 3):
        torch.manual_seed(step)
        optimizer.step(lambda: slopes @ weights)
        torch.manual_seed(step)
        noise = torch.randn(2, dtype=torch.float64).numpy()
        drawn = mean if step == 1 else mean + noise * np.sqrt(0.5 / 5 / (square / (1 - 0.8 ** (step - 1)) + floor))
        slope = slopes.mean(0).numpy()
        running = 0.9 * running + 0.1 * (slope + floor * drawn)
        square = 0.8 * square + 0.2 * 3 * slope**2
        mean = mean - 0.2 * running / (1 - 0.9**step) / (square / (1 - 0.8**step) + floor + 0.1)
        np.testing.assert_allclose(weights.detach(), mean, rtol=1e-10)


def covariance(optimizer, at=0):
    """Of a layer's matrix, row by row, from the optimizer's curvature."""
    size = optimizer.means[at].numel()
    units = torch.eye(size, dtype=torch.float64).view(size, *optimizer.means[at].shape)
    return optimizer.share * torch.stack([optimizer.scaled(at, unit, -1, optimizer.floor).flatten() for unit in units])


def test_noisy_kfac_finds_the_exact_posterior_of_a_linear_regression():
    """One output of constant curvature: the product of factors is exact, and weights depend on each other."""
    x, layer, losses, _, precision, mean = regression()
    signs = torch.ones(60, 1, dtype=torch.float64)
    signs[::2] = -1

    def sampled():
        out = layer(x)
        return (out - out.detach() - NOISE**0.5 * signs).square().squeeze(1) / (2 * NOISE)

    optimizer = NoisyKFAC(layer, 0.1, examples=60, variance=PRIOR, betas=(0.0, 0.9))
    descend(optimizer, losses, sampled, 500, scale=1.0)
    torch.testing.assert_close(covariance(optimizer), torch.linalg.inv(precision))
    assert ((layer.weight - mean).abs() < 0.15 * torch.linalg.inv(precision).diagonal().sqrt()).all()


def test_draws_of_noisy_kfac_have_the_covariance_of_the_kronecker_product_with_the_prior():
    layer = nn.Linear(2, 2).double()
    optimizer = NoisyKFAC(layer, 0.1, examples=7, kl=0.5, variance=0.2)
    x, y = torch.randn(9, 2, dtype=torch.float64), torch.randint(0, 2, (9,))
    optimizer.step(lambda: F.cross_entropy(layer(x), y, reduction="none"))
    outputs, inputs = (factor / 0.01 for factor in optimizer.factors[0])
    eye = torch.eye(6, dtype=torch.float64)
    exact = 0.5 / 7 * torch.linalg.inv(torch.kron(outputs, inputs) + 0.5 / (7 * 0.2) * eye)
    torch.testing.assert_close(covariance(optimizer), exact)
    draws = []
    for _ in range(2000):
        optimizer.draw()
        draws.append(matrix_of(list(layer.parameters())).flatten())
    torch.testing.assert_close(torch.stack(draws).T.cov(), exact, rtol=0, atol=0.12 * exact.max().item())
    optimizer.draw(0)
    torch.testing.assert_close(matrix_of(list(layer.parameters())), optimizer.means[0])


def test_labels_that_are_drawn_give_the_fisher_matrix_of_the_outputs():
    """The mean over all labels of one example: the covariance of a categorical distribution."""
    layer, x = nn.Linear(3, 3).double(), torch.randn(1, 3, dtype=torch.float64)
    probabilities, total = layer(x).softmax(-1)[0].detach(), 0
    for label in range(3):
        optimizer = NoisyKFAC(layer, 0.1, examples=1, betas=(0.0, 0.0))
        optimizer.look(lambda label=label: F.cross_entropy(layer(x), torch.tensor([label]), reduction="none"))
        total = total + probabilities[label] * optimizer.factors[0][0]
    torch.testing.assert_close(total, probabilities.diag() - probabilities.outer(probabilities))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 0)}, {"bias": False}])
def test_a_convolution_is_its_matrix_times_its_patches(options):
    layer = nn.Conv2d(2, 3, (3, 2), **options).double()
    images = torch.randn(4, 2, 7, 6, dtype=torch.float64)
    product = inputs_of(layer, images) @ matrix_of(list(layer.parameters())).T
    torch.testing.assert_close(product, outputs_of(layer, layer(images)))


def test_the_factors_of_a_convolution_are_sums_over_its_places():
    """Patch by patch, the gradients by finite differences of the loss of each example."""
    layer = nn.Conv2d(2, 3, 2).double()
    images = torch.randn(2, 2, 3, 3, dtype=torch.float64)

    def losses(outputs):
        return outputs.flatten(1).sin().sum(1) + outputs.flatten(1).prod(1)

    optimizer = NoisyKFAC(layer, 0.1, examples=2, betas=(0.0, 0.0))
    optimizer.look(lambda: losses(layer(images)))
    inputs, outputs = np.zeros((9, 9)), np.zeros((3, 3))
    values = layer(images).detach()
    for image in range(2):
        for row in range(2):
            for column in range(2):
                patch = np.append(images[image, :, row : row + 2, column : column + 2].flatten().numpy(), 1.0)
                inputs += np.outer(patch, patch) / 2
                slope = np.zeros(3)
                for channel in range(3):
                    step = torch.zeros_like(values)
                    step[image, channel, row, column] = 1e-5
                    slope[channel] = (losses(values + step) - losses(values - step))[image].item() / 2e-5
                outputs += np.outer(slope, slope) / (2 * 4)
    np.testing.assert_allclose(optimizer.factors[0][0], outputs, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(optimizer.factors[0][1], inputs, rtol=1e-10)


def test_a_convolution_of_one_pixel_trains_as_the_linear_layer_that_it_is():
    linear, convolution = nn.Linear(3, 2).double(), nn.Conv2d(3, 2, 1).double()
    with torch.no_grad():
        convolution.weight.copy_(linear.weight[..., None, None])
        convolution.bias.copy_(linear.bias)
    pixels = torch.randn(5, 4, 3, dtype=torch.float64)
    images = pixels.mT.reshape(5, 3, 2, 2)
    runs = {linear: lambda: linear(pixels).mT.flatten(1), convolution: lambda: convolution(images).flatten(1)}
    for layer, run in runs.items():
        torch.manual_seed(1)
        optimizer = NoisyKFAC(layer, 0.1, examples=5)
        for _ in range(5):
            optimizer.step(lambda run=run: run().square().sum(1))
    torch.testing.assert_close(convolution.weight[..., 0, 0], linear.weight)
    torch.testing.assert_close(convolution.bias, linear.bias)


def test_layers_after_it_may_change_an_output_in_place():
    first, last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 2, (6,))
    found = []
    for inplace in (False, True):
        module = nn.Sequential(first, nn.ReLU(inplace), last)
        optimizer = NoisyKFAC(module, 0.1, examples=6)
        optimizer.look(lambda module=module: F.cross_entropy(module(x), y, reduction="none"))
        found.append(optimizer.factors)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.BatchNorm1d(3), "1.weight"),
        (nn.Conv2d(2, 2, 1, groups=2), "1.weight"),
        (nn.Conv2d(2, 2, 3, padding="same"), "1.weight"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "1.weight"),
    ],
)
def test_noisy_kfac_refuses_parameters_of_other_layers(layer, name):
    with pytest.raises(ValueError, match=f"Linear and plain Conv2d, not the layer of '{name}': take NoisyAdam"):
        NoisyKFAC(nn.Sequential(nn.Linear(3, 3), layer), 0.1, examples=1)


def collected(count, rank):
    layer = nn.Linear(2, 2).double()
    swag, path = SWAG(layer, rank), []
    for _ in range(count):
        with torch.no_grad():
            for one in layer.parameters():
                one.add_(torch.randn_like(one))
        swag.collect()
        path.append(np.concatenate([one.detach().flatten().numpy() for one in layer.parameters()]))
    return layer, swag, np.array(path)


@pytest.mark.parametrize(("count", "rank"), [(4, 20), (9, 3)])
def test_draws_of_swag_have_the_mean_and_the_covariance_of_its_path(count, rank):
    layer, swag, path = collected(count, rank)
    deviations = np.array([weights - path[: at + 1].mean(0) for at, weights in enumerate(path)])[-rank:]
    low = deviations.T @ deviations / (len(deviations) - 1)
    exact = torch.tensor((np.diag(path.var(0)) + low) / 2)
    np.testing.assert_allclose(swag.mean, path.mean(0), rtol=1e-12)
    draws = []
    for _ in range(2000):
        swag.draw()
        draws.append(nn.utils.parameters_to_vector(layer.parameters()).detach())
    draws = torch.stack(draws)
    torch.testing.assert_close(draws.T.cov(), exact, rtol=0, atol=0.12 * exact.max().item())
    assert ((draws.mean(0) - swag.mean).abs() < 4 * (exact.diagonal() / len(draws)).sqrt()).all()


def test_swag_needs_two_networks_and_a_rank_of_two():
    _, swag, _ = collected(1, 20)
    with pytest.raises(RuntimeError, match=r"two networks or more, and collected 1: call collect\(\)"):
        swag.draw()
    with pytest.raises(ValueError, match="rank must be 2 or more, since it is divided by one less, not 1"):
        SWAG(nn.Linear(2, 2), 1)


def test_linearised_members_of_a_linear_network_are_its_draws(monkeypatch):
    """With a stand-in for laplace-torch whose draws are known."""
    layer, images = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    mean = nn.utils.parameters_to_vector(layer.parameters()).detach()
    draws = torch.randn(5, 8, dtype=torch.float64)
    posterior = types.SimpleNamespace(
        fit=lambda loader: None, optimize_prior_precision=lambda method: None, mean=mean, sample=lambda count: draws[:count]
    )
    package = types.ModuleType("laplace")
    package.__spec__ = importlib.machinery.ModuleSpec("laplace", None)
    package.Laplace = lambda *args, **options: posterior
    monkeypatch.setitem(sys.modules, "laplace", package)
    members = Linearised(layer, images, torch.zeros(4, dtype=torch.long), 5)
    expected = [images @ draw[:6].view(2, 3).T + draw[6:] for draw in draws]
    torch.testing.assert_close(members(images), torch.stack(expected))


def test_without_laplace_torch_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="laplace-torch is not installed: pip install laplace-torch"):
        Linearised(nn.Linear(3, 2), torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), 5)


@pytest.mark.parametrize(("count", "steps"), [(250, 7), (30, 3)])
def test_each_image_comes_once_before_any_comes_again(count, steps):
    chosen = order(count, steps)
    size = min(count, 100)
    assert [len(one) for one in chosen] == [size] * steps
    for start in range(0, steps, count // size):
        some = torch.cat(chosen[start : start + count // size])
        assert len(some.unique()) == len(some)


def run(script, *arguments, folder):
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "baselines" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ") for line in done.stdout.splitlines() if line.count(": ") == 1)


@pytest.mark.slow
def test_every_kind_runs(tmp_path):
    figures = run("digits.py", "--steps", "40", "--seeds", "1", folder=tmp_path)
    kinds = [kind for kind in KINDS if kind != "laplace" or installed()]
    assert {f"{kind}_ensemble_accuracy" for kind in kinds} <= set(figures)
    assert all(0 <= float(value) <= 1 for name, value in figures.items() if name.endswith(("accuracy", "disagreement")))


@pytest.mark.slow
def test_active_learning_runs(tmp_path):
    figures = run("active_learning.py", "--kinds", "noisy_kfac", "--steps", "2", folder=tmp_path)
    assert figures["noisy_kfac_information_start"] == figures["noisy_kfac_chance_start"]
    assert (tmp_path / "active_learning.png").exists()
