import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import DiversityLoss, Hypernet, hookimpl
from lightning_hypernet.diversity import (
    EnsembleLoss,
    Entropy,
    MutualInformation,
    OutputEntropy,
    Repulsion,
    Variance,
)
from lightning_hypernet.diversity.entropy import entropy, nearest_distances
from lightning_hypernet.plugins import Plugins
from lightning_hypernet.population import some_parameters


def slow_entropy(vectors, dimension, p):
    """The estimator of reference section 4, written out pair by pair."""
    total = 0.0
    for i, one in enumerate(vectors):
        total += math.log(min((one - other).abs().pow(p).sum() ** (1 / p) for j, other in enumerate(vectors) if i != j) + 1e-8)
    return dimension * total / len(vectors) + torch.digamma(torch.tensor(len(vectors)).double()).item()


@pytest.mark.parametrize("p", [1, 2])
def test_entropy_equals_the_slow_one(p):
    torch.manual_seed(0)
    for n, d in ((2, 3), (9, 40), (40, 7)):
        vectors = torch.randn(n, d, dtype=torch.float64)
        assert entropy(vectors, 5, p).item() == pytest.approx(slow_entropy(vectors, 5, p), rel=1e-10)


@pytest.mark.parametrize("p", [1, 2])
def test_gradient_of_the_distances(p):
    torch.manual_seed(0)
    vectors = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: nearest_distances(v, p), vectors)


@pytest.mark.parametrize("p", [1, 2])
def test_columns_may_come_in_parts(p):
    """Parts longer and shorter than what is read at once, against a plain loop, in value and gradient."""
    torch.manual_seed(0)
    parts = [torch.randn(6, size, dtype=torch.float64, requires_grad=True) for size in (3, 40_000, 1)]
    joined = torch.cat([part.detach() for part in parts], 1).requires_grad_()
    apart = torch.stack([torch.stack([(one - other).norm(p=p) for other in joined]) for one in joined])
    expected = (apart + torch.diag(torch.full((6,), torch.inf))).amin(1)
    found = nearest_distances(parts, p)
    assert torch.allclose(found, expected, rtol=1e-12)
    weights = torch.rand(6, dtype=torch.float64)
    (found @ weights).backward()
    nearest = (apart + torch.diag(torch.full((6,), torch.inf))).argmin(1)
    torch.stack([(joined[i] - joined[nearest[i]]).norm(p=p) for i in range(6)]).dot(weights).backward()
    assert torch.allclose(torch.cat([part.grad for part in parts], 1), joined.grad, rtol=1e-9, atol=1e-12)


def textbook_distances(own, everyone, first, p):
    """All differences with gradients; the others of everyone are constants."""
    joined = torch.cat([everyone[:first], own, everyone[first + len(own) :]])
    apart = (joined[:, None] - joined).norm(p=p, dim=2)
    apart = apart + torch.diag(torch.full((len(joined),), torch.inf))
    return (own - joined[apart[first : first + len(own)].argmin(1)]).norm(p=p, dim=1)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("first", "count"), [(0, 8), (0, 4), (4, 4), (2, 2), (5, 1)])
def test_vectors_of_other_ranks_are_constants(monkeypatch, p, first, count):
    """Neighbours that are each other's, that several share, that lie elsewhere, and that are duplicates."""
    torch.manual_seed(0)
    everyone = torch.randn(8, 9000, dtype=torch.float64)
    everyone[1] = everyone[0] + 0.1 * torch.randn(9000)
    everyone[2] = everyone[0] + 0.3 * torch.randn(9000)
    everyone[5] = everyone[4]
    everyone[6, :4500] = everyone[4, :4500]
    own = everyone[first : first + count].clone().requires_grad_()
    expected = textbook_distances(own, everyone, first, p)
    factors = torch.rand(count, dtype=torch.float64)
    (slope,) = torch.autograd.grad(expected @ factors, own)
    ranks = 8 // count
    if ranks > 1:
        module = "lightning_hypernet.diversity.entropy"
        monkeypatch.setattr(f"{module}._ranks", lambda all_ranks: ranks)
        widths = lambda parts: [part.shape[1] for part in parts]  # noqa: E731
        monkeypatch.setattr(f"{module}._gathered", lambda parts, ranks: list(everyone.split(widths(parts), dim=1)))
        monkeypatch.setattr(f"{module}.distributed.get_rank", lambda: first // count)
    parts = [own[:, :5000], own[:, 5000:]]
    found = nearest_distances(parts, p)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-7)
    (same,) = torch.autograd.grad(found @ factors, own)
    assert torch.allclose(same, slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_absolute_differences_of_half_precision(dtype):
    torch.manual_seed(0)
    vectors = torch.randn(5, 9000).to(dtype).requires_grad_()
    exact = vectors.detach().double().requires_grad_()
    found, expected = nearest_distances(vectors, 1), nearest_distances(exact, 1)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    assert vectors.grad.dtype == dtype
    assert torch.equal(vectors.grad.double(), exact.grad)


def test_sums_of_absolute_differences_keep_no_vectors():
    """The gradient of a distance of zero is zero; backward holds the vectors alone."""
    kept = []
    vectors = torch.randn(2, 50_000).repeat(2, 1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        distances = nearest_distances(vectors, 1)
    assert {one.data_ptr() for one in kept if one.numel() > 1000} == {vectors.data_ptr()}
    distances.sum().backward()
    assert distances.tolist() == [0.0] * 4
    assert not vectors.grad.any()


def test_entropy_of_a_part_of_the_parameters_stands_for_all():
    _, population = trained_population()
    sizes = {name: value[0].numel() for name, value in population.weights.items()}
    loss = Entropy(coordinates=30)
    seen = set()
    for _ in range(8):
        value = loss(population)
        chosen = some_parameters(population.banks.shapes, 30, loss.draws)
        read = sum(sizes[name] for name in chosen)
        assert read >= 30
        assert read - sizes[chosen[-1]] < 30
        vectors = torch.cat(population.gauged_parts(chosen), 1) * math.sqrt(sum(sizes.values()) / read)
        assert value.item() == pytest.approx(-entropy(vectors, 5).item(), rel=1e-5)
        seen.add(tuple(chosen))
    assert len(seen) > 1
    assert Entropy()(population).item() == pytest.approx(-entropy(population.gauged, 5).item(), rel=1e-6)
    with pytest.raises(ValueError, match="coordinates must be 1 or more, not 0"):
        Entropy(coordinates=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    """Neighbours in tight clusters, which half precision would not tell apart."""
    torch.manual_seed(0)
    centres = torch.randn(8, 20_000).repeat_interleave(4, 0) * 3
    vectors = (centres + 0.05 * torch.randn(32, 20_000)).requires_grad_()
    expected = nearest_distances(vectors)
    (gradient,) = torch.autograd.grad(expected.sum(), vectors)
    with torch.autocast("cpu", dtype):
        found = nearest_distances(vectors)
        (same,) = torch.autograd.grad(found.sum(), vectors)
    assert torch.equal(found, expected)
    assert torch.equal(same, gradient)


def test_entropy_of_a_known_distribution():
    """Differences of estimates are differences of entropies: a cube twice as wide has d log 2 nats more."""
    torch.manual_seed(0)
    vectors = torch.rand(500, 3, dtype=torch.float64)
    assert (entropy(2 * vectors, 3) - entropy(vectors, 3)).item() == pytest.approx(3 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("p", [1, 2])
def test_duplicates_are_finite(p):
    vectors = torch.randn(3, 5).repeat(2, 1).requires_grad_()
    value = entropy(vectors, 64, p)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(vectors.grad).all()


def test_far_away_duplicates_find_each_other():
    """Neighbours are right where a matrix product in float32 would lose all digits."""
    vectors = 1e4 + torch.tensor([[0.0, 0.0], [0.5, 0.0], [3.0, 0.0], [3.25, 0.0]])
    assert nearest_distances(vectors).tolist() == [0.5, 0.5, 0.25, 0.25]


def test_one_network_has_no_neighbour():
    with pytest.raises(ValueError, match="needs two networks or more, not 1; raise `samples`"):
        nearest_distances(torch.randn(1, 3))


def trained_population(dtype=torch.float32, **options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    hypernet = Hypernet(target, samples=6, latent_dim=5, **options)
    hypernet(torch.randn(12, 4, dtype=dtype))
    hypernet.population.targets = torch.randint(0, 3, (12,))
    return hypernet, hypernet.population


LOSSES = {
    "entropy": lambda: Entropy(),
    "entropy_l1": lambda: Entropy(p=1),
    "entropy_part": lambda: Entropy(coordinates=10, samples=4),
    "variance": lambda: Variance(),
    "output_entropy": lambda: OutputEntropy(),
    "output_entropy_softmax": lambda: OutputEntropy(softmax=True),
    "ensemble": lambda: EnsembleLoss(),
    "ensemble_relative": lambda: EnsembleLoss(relative=True),
    "repulsion_kde": lambda: Repulsion("kde", "weights"),
    "repulsion_gfsf": lambda: Repulsion("gfsf", "weights"),
    "mi_weights": lambda: MutualInformation(),
    "mi_outputs": lambda: MutualInformation(reads="outputs", noise=0.1, coordinates=2),
    "mi_component": lambda: MutualInformation(latent="component"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_scalars_whose_gradients_reach_the_generator(name):
    hypernet, population = trained_population(components=2, example_inputs=torch.randn(7, 4))
    loss = LOSSES[name]()
    loss.prepare(hypernet.sample(2))
    value = loss(population)
    value.backward()
    assert value.ndim == 0
    reached = [p for p in hypernet.generator.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) > len(list(hypernet.generator.parameters())) / 2
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("name", ["entropy", "entropy_l1", "variance"])
def test_weight_losses_are_low_for_diverse_populations(name):
    _, population = trained_population()
    near = {key: value.mean(0) + 0.1 * (value - value.mean(0)) for key, value in population.weights.items()}
    loss = LOSSES[name]()
    population.__dict__.pop("gauged", None)
    far = loss(population)
    population.networks = population.networks.others(near)
    population.__dict__.pop("gauged", None)
    assert far < loss(population)


def test_variance_is_that_within_components():
    _, population = trained_population(torch.float64, components=2)
    vectors = population.gauged
    within = torch.cat([own - own.mean(0) for own in (vectors[population.latents.component == k] for k in range(2))])
    # the mean log of the variance of so few normal numbers
    few = chi2(len(vectors) - 2).expect(np.log) - math.log(len(vectors))
    expected = -0.5 * ((within.square().mean(0) + 1e-8).log().mean() - few)
    assert torch.allclose(Variance()(population), expected)


@pytest.mark.parametrize(("count", "components"), [(2, 1), (3, 1), (8, 1), (4, 2), (12, 3)])
def test_variance_of_normal_weights_is_right_however_few_networks_are_drawn(count, components):
    _, population = trained_population(torch.float64, components=components)
    population.latents = replace(population.latents, component=torch.arange(count) % components)
    population.__dict__["gauged"] = 0.01 * torch.randn(count, 40_000, generator=torch.Generator().manual_seed(0)).double()
    assert float(Variance().forward(population)) == pytest.approx(-math.log(0.01), abs=0.03)


@pytest.mark.parametrize("name", ["entropy", "variance", "repulsion_kde", "repulsion_gfsf"])
def test_autocast_changes_no_weight_loss(name):
    """Of networks that differ little, as half precision would not tell."""
    found = []
    for enabled in (False, True):
        _, population = trained_population(components=2)
        weights = {key: value.detach() for key, value in population.weights.items()}
        leaves = [(value.mean(0) + 1e-3 * (value - value.mean(0))).requires_grad_() for value in weights.values()]
        population.networks = population.networks.others(dict(zip(weights, leaves, strict=True)))
        population.__dict__.pop("gauged", None)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = LOSSES[name]()(population)
        found.append((value, *torch.autograd.grad(value, leaves)))
    for one, same in zip(*found, strict=True):
        assert torch.equal(one, same)


def test_variance_needs_two_networks_of_a_component():
    _, population = trained_population(components=6)
    with pytest.raises(ValueError, match="each of the 6 networks drawn is of another component"):
        Variance()(population)


def test_output_entropy_reads_shared_examples():
    hypernet, population = trained_population()
    outputs = hypernet.run(population, population.batch.leaves[0])
    assert torch.allclose(population.outputs, outputs)
    assert torch.allclose(OutputEntropy()(population), -entropy(outputs.flatten(1), 5))


def test_ensemble_loss_by_hand():
    _, population = trained_population(torch.float64)  # members and ensemble are close: their difference cancels
    joined = population.outputs.softmax(-1).mean(0).log()
    loss = F.nll_loss(joined, population.targets)
    members = torch.stack([F.cross_entropy(output, population.targets) for output in population.outputs]).mean()
    assert torch.allclose(EnsembleLoss()(population), loss)
    assert torch.allclose(EnsembleLoss(relative=True)(population), loss - members)
    assert EnsembleLoss(relative=True)(population) < 0
    squared = EnsembleLoss(loss="mse_loss", join="mean")
    population.targets = torch.randn(12, 3)
    assert torch.allclose(squared(population), F.mse_loss(population.outputs.mean(0), population.targets))


def train_on(loss, hypernet, steps, batch):
    """Minimise the loss alone, over generator and q; its value at every step."""
    loss.prepare(hypernet.sample(2))
    optimizer = torch.optim.Adam([*hypernet.parameters(), *loss.parameters()], lr=3e-3)
    values = []
    for _ in range(steps):
        hypernet(torch.randn(batch))
        value = loss(hypernet.population)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def test_mutual_information_recovers_what_the_weights_tell():
    """With z written into the weights the bound on I(z; theta) rises far above its start."""
    torch.manual_seed(0)
    values = train_on(MutualInformation(), Hypernet(nn.Linear(30, 30), latent_dim=4, samples=32), 250, (32, 30))
    assert values[-1] < values[0] - 2


def test_mutual_information_in_double_precision():
    _, population = trained_population(torch.float64, components=2)
    loss = MutualInformation()
    loss.prepare(population)
    assert loss(population).dtype == torch.float64


def test_categorical_bound_ends_at_minus_log_components():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(8, 8), components=4, samples=16)
    values = train_on(MutualInformation(latent="component"), hypernet, 100, (16, 8))
    assert -math.log(4) - 1e-6 <= values[-1] < -1.3


def test_only_what_is_read_is_computed():
    _, population = trained_population()
    Entropy()(population)
    assert "outputs" not in vars(population)
    OutputEntropy()(population)
    assert "vectors" not in vars(population)


def test_member_distance():
    _, population = trained_population()
    copies = {name: value[:1].expand_as(value) for name, value in population.weights.items()}
    population.networks = population.networks.others(copies)
    assert population.distance().item() == pytest.approx(0, abs=1e-3)
    population.__dict__.pop("gauged", None)
    population.networks = population.networks.others({name: torch.randn_like(value) for name, value in copies.items()})
    assert population.distance().item() == pytest.approx(2**0.5, abs=0.1)


def test_the_member_distance_reads_as_many_coordinates_as_are_asked_for():
    _, population = trained_population()
    whole = population.gauged
    by_hand = (2 * (whole - whole.mean(0)).square().sum() / (len(whole) - 1) / whole.square().sum(1).mean()).sqrt()
    read = []
    part = replace(population, gauge=lambda weights, names: read.append(names) or population.gauge(weights, names))
    assert part.distance(None).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert part.distance(30).item() == pytest.approx(part.distance(30).item(), rel=1e-6)
    assert read[1] == read[2] != list(population.weights)
    assert "gauged" not in vars(part)
    assert not part.distance().requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Entropy(p=3), "p must be 1 or 2, not 3"),
        (lambda: OutputEntropy(p=3), "p must be 1 or 2, not 3"),
        (lambda: EnsembleLoss(loss="no_loss"), "torch.nn.functional has no loss 'no_loss'"),
        (lambda: EnsembleLoss(join="sum"), "join must be"),
        (lambda: MutualInformation(reads="codes"), "reads must be"),
        (lambda: MutualInformation(latent="all"), "latent must be"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_inputs_name_the_remedy():
    hypernet, population = trained_population()
    with pytest.raises(ValueError, match="no inputs to run on; it is read after a training forward"):
        OutputEntropy()(hypernet.sample(3))
    with pytest.raises(ValueError, match="give the Hypernet example_inputs"):
        MutualInformation(reads="outputs").prepare(population)
    with pytest.raises(ValueError, match="needs components > 1"):
        MutualInformation(latent="component").prepare(population)
    with pytest.raises(ValueError, match="call prepare"):
        MutualInformation()(population)
    population.targets = None
    with pytest.raises(ValueError, match="batches must be .inputs, targets."):
        EnsembleLoss()(population)


class Broken(DiversityLoss):
    def __init__(self, kind="raise"):
        super().__init__()
        self.kind = kind

    def forward(self, population):
        if self.kind == "raise":
            raise ZeroDivisionError("by design")
        return {"nan": torch.tensor(math.nan), "vector": torch.zeros(2), "float": 1.0}[self.kind]


class BrokenPlugin:
    @hookimpl
    def hypernet_register_diversity(self, register):
        register("broken", Broken)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("raise", RuntimeError, "the diversity loss 'broken' failed: by design"),
        ("nan", ValueError, "the diversity loss 'broken' is NaN"),
        ("vector", ValueError, "'broken' must return a scalar tensor, not .2,."),
        ("float", ValueError, "'broken' must return a scalar tensor, not float"),
    ],
)
def test_broken_losses_are_named(kind, error, message):
    _, population = trained_population()
    diversity = Plugins([BrokenPlugin()]).build_diversity({"broken": {"kind": kind}})
    with pytest.raises(error, match=message):
        diversity(population)


def test_weights_and_several_at_once():
    _, population = trained_population()
    diversity = Plugins().build_diversity({"entropy": 0.5, "variance": {"weight": 2.0}, "output_entropy": {"p": 1}})
    values = diversity(population)
    assert list(values) == ["entropy", "variance", "output_entropy"]
    expected = 0.5 * values["entropy"] + 2 * values["variance"] + 1e-3 * values["output_entropy"]
    assert torch.allclose(diversity.total(values), expected)
    assert not Plugins().build_diversity(None).losses
    assert Plugins().build_diversity(["entropy", "variance"]).weights == {"entropy": 1e-3, "variance": 1e-2}
    with pytest.raises(TypeError, match="the weight of the diversity loss 'entropy' must be a number, 0 or more, not 'a'"):
        Plugins().build_diversity({"entropy": "a"})


def test_unknown_names_and_arguments():
    with pytest.raises(
        ValueError, match="unknown diversity loss 'entropi'; did you mean 'entropy'. there are ensemble, entropy"
    ):
        Plugins().build_diversity("entropi")
    with pytest.raises(TypeError, match="'variance' does not take these options"):
        Plugins().build_diversity({"variance": {"power": 2}})
