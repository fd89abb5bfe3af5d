import pytest
import torch
from torch import nn

from lightning_hypernet import Extractor, GeneratorConfig, Hypernet, Latents, hookimpl
from lightning_hypernet.generator.layers import ACTIVATIONS


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def mnist_target():
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 16, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10),
    )  # fmt: skip


def lenet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def test_the_papers_mnist_hypernetwork_to_the_parameter():
    hypernet = Hypernet(mnist_target(), latent_dim=300, prior="uniform", generator=GeneratorConfig.paper("mnist"))
    assert hypernet.banks.weights == 20_018
    assert [(bank.filters, bank.filter_size) for bank in hypernet.banks] == [(32, 26), (16, 801), (8, 785), (1, 90)]
    assert parameters(hypernet) == 633_640
    norms = sum(parameters(module) for module in hypernet.modules() if isinstance(module, nn.BatchNorm1d))
    assert parameters(hypernet) - norms == 631_240
    assert parameters(hypernet.generator.extractor.head) == 256_500


def test_the_papers_lenet_weight_generators():
    hypernet = Hypernet(lenet(), latent_dim=100, generator=GeneratorConfig.paper("cifar_lenet"))
    assert hypernet.banks.weights == 62_006
    counts = [
        sum(linear.weight.numel() for linear in generator.modules() if isinstance(linear, nn.Linear))
        for generator in hypernet.generator.weight_generators
    ]
    assert counts == [193_600, 223_600, 323_600, 4_228_800, 503_200]
    linears = [module for module in hypernet.generator.extractor.modules() if isinstance(module, nn.Linear)]
    assert sum(linear.weight.numel() for linear in linears) == 290_400


def test_the_papers_resnet_generators_have_skips_and_its_widths():
    config = GeneratorConfig.paper("cifar_resnet32")
    target = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(64, 10))
    hypernet = Hypernet(target, latent_dim=100, generator=config)
    first, last = hypernet.generator.weight_generators
    assert config.residual
    assert parameters(first.hidden.linears) + parameters(first.head) == 668_800
    assert parameters(last.hidden.linears) + parameters(last.head) == 1_166_400


def test_the_papers_start_has_a_tenth_of_the_usual_size():
    torch.manual_seed(0)
    hypernet = Hypernet(mnist_target(), latent_dim=300, generator=GeneratorConfig.paper("mnist"))
    weight = hypernet.generator.extractor.head.weight
    assert weight.std().item() * 300**0.5 == pytest.approx(0.088, abs=0.002)
    assert weight.abs().max().item() * 300**0.5 <= 0.2 + 1e-6
    assert hypernet.generator.mean_codes is None
    assert all(generator.means is None for generator in hypernet.generator.weight_generators)


def statistics(target, hypernet, n=200):
    weights = hypernet.sample(n).weights
    for name, parameter in target.named_parameters():
        yield name, parameter.detach(), weights[name].detach()


def test_sampled_weights_start_with_the_statistics_of_the_target():
    torch.manual_seed(0)
    target = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 128, 3), nn.Flatten(), nn.Linear(128, 99))
    nn.init.normal_(target[2].weight, 0.5, 3.0)
    for name, own, sampled in statistics(target, Hypernet(target)):
        assert sampled.mean().item() == pytest.approx(own.mean().item(), abs=0.5 * own.std().item() + 0.05), name
        if own.std() > 0:
            assert 0.7 < (sampled.std() / own.std()).item() < 1.4, name
        else:
            assert 0 < sampled.std() < 0.2, name


def test_pretrained_start_stays_near_the_weights():
    torch.manual_seed(0)
    target = lenet()
    hypernet = Hypernet(target, generator=GeneratorConfig.pretrained(0.01))
    for name, own, sampled in statistics(target, hypernet, 20):
        assert 0 < (sampled - own).norm(dim=None) < 0.05 * (20**0.5) * own.norm(), name


def test_mean_weights_learn_as_the_targets_own_parameters_would():
    torch.manual_seed(3)
    target = lenet().double()
    hypernet = Hypernet(target, components=3, generator={"start": "mean_weights", "gain": 0.1})
    generator, components = hypernet.generator.eval(), torch.tensor([2, 0, 1])
    weights = generator(Latents(torch.randn(3, 64, dtype=torch.float64), components))
    own = dict(target.named_parameters())
    for name, value in weights.items():
        correlations = torch.corrcoef(torch.cat([own[name].detach()[None], value.detach()]).flatten(1))[0, 1:]
        assert correlations[1] > 0.8 and correlations[[0, 2]].abs().max() < (0.8 if value[0].numel() < 50 else 0.5), name
    upstream = {name: torch.randn_like(value) for name, value in weights.items()}
    loss = sum((weights[name] * value).sum() for name, value in upstream.items())
    offsets = [weight_generator.means for weight_generator in generator.weight_generators]
    gradients = torch.autograd.grad(loss, offsets)
    for gradient, expected in zip(gradients, hypernet.banks.flatten(upstream), strict=True):
        torch.testing.assert_close(gradient[components], expected)


@pytest.mark.parametrize("start", ["mean_weights", "pretrained"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"extractor": "mlp"}, {"extractor_hidden": 16}, {"norm": "batch"}], ids=str)
def test_mean_weights_alone_are_what_the_networks_of_a_component_share(start, training, options):
    torch.manual_seed(0)
    hypernet = Hypernet(lenet().double(), components=2, generator={"start": start, **options}).train(training)
    generator, components = hypernet.generator, torch.tensor([1, 0, 1])
    with torch.no_grad():
        for parameter in generator.extractor.parameters():  # biases that training moved
            parameter += 0.1 * torch.randn_like(parameter)
    z = torch.stack([torch.zeros(64), torch.zeros(64), torch.randn(64)]).double()
    weights = generator(Latents(z, components))
    means = hypernet.banks.assemble([generate.means[components].split(generate.sizes, -1) for generate in generator.of_banks()])
    for name, value in weights.items():
        torch.testing.assert_close(value[:2], means[name][:2], msg=name)
        assert (value[2] - means[name][2]).std() > 1e-4 * means[name][2].std(), name


def test_what_all_networks_share_learns_under_the_rate_and_decay_of_the_plain_target():
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 8, 3, 32, 32).double(), torch.arange(8) % 10
    hypernet = Hypernet(lenet().double(), samples=2, generator={"spread": 0.0}, execution="loop").train()
    plain = lenet().double()
    plain.load_state_dict({name: value[0] for name, value in hypernet.sample(1).weights.items()})
    for module in (plain, hypernet):
        optimizer = torch.optim.AdamW(module.parameters(), 0.03, weight_decay=0.5)
        for batch in inputs:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(batch), targets).backward()
            optimizer.step()
    own = dict(plain.named_parameters())
    for name, value in hypernet.sample(1).weights.items():
        torch.testing.assert_close(value[0], own[name], msg=name)


def test_components_learn_at_the_rate_and_decay_of_one_network():
    torch.manual_seed(0)
    inputs, targets = torch.randn(8, 3, 32, 32).double(), torch.arange(8) % 10
    hypernet = Hypernet(lenet().double(), components=4, samples=4).train()
    with hypernet.step():
        loss = nn.functional.cross_entropy(hypernet(inputs), targets)
        population = hypernet.population
    networks = [{name: value.detach()[i].clone() for name, value in population.weights.items()} for i in range(4)]
    offsets = [weight_generator.means for weight_generator in hypernet.generator.weight_generators]
    before = [offset.detach().clone() for offset in offsets]
    optimizer = torch.optim.SGD(offsets, 0.05, weight_decay=5e-4)
    loss.backward()
    optimizer.step()
    for index, weights in enumerate(networks):
        plain = lenet().double()
        plain.load_state_dict(weights)
        nn.functional.cross_entropy(plain(inputs[2 * index :][:2]), targets[2 * index :][:2]).backward()
        gradients = hypernet.banks.flatten({name: parameter.grad[None] for name, parameter in plain.named_parameters()})
        component = population.latents.component[index]
        for offset, old, gradient in zip(offsets, before, gradients, strict=True):
            torch.testing.assert_close(offset[component], old[component] - 0.05 * (gradient[0] + 5e-4 * old[component]))


def test_gradients_outside_of_training_are_those_of_the_function():
    torch.manual_seed(0)
    hypernet = Hypernet(lenet().double(), components=3)
    offset = hypernet.generator.weight_generators[0].means
    latents = torch.randn(1, 64).double()
    (gradient,) = torch.autograd.grad(
        hypernet.decode(Latents(latents, torch.full((len(latents),), 2))).vectors.square().sum(), offset
    )
    with torch.no_grad():
        values = []
        for change in (1e-5, -2e-5):
            offset[2, 0, 0] += change
            values.append(hypernet.decode(Latents(latents, torch.full((len(latents),), 2))).vectors.square().sum())
    assert gradient[2, 0, 0].item() == pytest.approx((values[0] - values[1]).item() / 2e-5, rel=1e-6)


def test_a_bank_of_one_filter_starts_around_the_targets_weights():
    torch.manual_seed(0)
    target = nn.Linear(20, 10)
    hypernet = Hypernet(target)
    mean = hypernet.sample(4000).weights["weight"].mean(0)
    correlation = torch.corrcoef(torch.stack([mean.flatten(), target.weight.flatten()]).detach())[0, 1]
    assert correlation > 0.9


def test_the_compact_generator_is_smaller_than_its_target():
    target = nn.Sequential(nn.Conv2d(64, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.Flatten(), nn.Linear(256, 10))
    hypernet = Hypernet(target, generator=GeneratorConfig.compact())
    assert parameters(hypernet) < hypernet.banks.weights / 3
    hypernet.train()(torch.randn(8, 64, 5, 5)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in hypernet.parameters())


def test_components_are_families_of_networks():
    torch.manual_seed(0)
    hypernet = Hypernet(lenet(), components=3, samples=7)
    hypernet.train()(torch.randn(14, 3, 32, 32))
    counts = torch.bincount(hypernet.population.latents.component, minlength=3)
    assert counts.sum() == 7
    assert counts.max() - counts.min() <= 1
    one = hypernet.sample(5, component=2)
    assert one.latents.component.tolist() == [2] * 5
    latents = torch.randn(6, 64)
    same = hypernet.decode(Latents(latents, torch.full((len(latents),), 1))).vectors
    other = hypernet.decode(Latents(latents, torch.full((len(latents),), 2))).vectors
    inside = (same[:3] - same[3:]).norm(dim=1).mean()
    across = (same - other).norm(dim=1).mean()
    assert across > 2 * inside


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "tanh"])
def test_options_of_the_generator(norm, activation):
    config = GeneratorConfig(norm=norm, activation=activation, hidden=((8, 8), (16,)), residual=True, bias=False)
    hypernet = Hypernet(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), generator=config)
    hypernet(torch.randn(8, 3)).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in hypernet.parameters())
    assert hypernet.generator.weight_generators[1].head.in_features == 16


def test_one_sample_a_step_works():
    hypernet = Hypernet(nn.Linear(3, 2), samples=1)
    assert torch.isfinite(hypernet(torch.randn(4, 3))).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_target_and_later_conversions_hold(dtype):
    hypernet = Hypernet(nn.Linear(3, 2).to(dtype))
    assert hypernet(torch.randn(4, 3, dtype=dtype)).dtype == dtype
    assert Hypernet(nn.Linear(3, 2)).to(dtype)(torch.randn(4, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("prior", ["normal", "uniform", torch.distributions.Beta(0.5, 0.5)])
def test_priors(prior):
    latents = Hypernet(nn.Linear(3, 2), prior=prior, latent_dim=7).sample(4000).latents.z
    assert latents.shape == (4000, 7)
    mean, std = {"normal": (0, 1), "uniform": (0, 3**-0.5)}.get(prior, (0.5, 8**-0.5))
    assert latents.mean().item() == pytest.approx(mean, abs=0.03)
    assert latents.std().item() == pytest.approx(std, abs=0.03)


def test_a_prior_of_vectors():
    prior = torch.distributions.MultivariateNormal(torch.arange(3.0), torch.eye(3) * 0.01)
    latents = Hypernet(nn.Linear(3, 2), prior=prior, latent_dim=3).sample(500).latents.z
    assert torch.allclose(latents.mean(0), torch.arange(3.0), atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code_size": 0}, "code_size must be 1 or more, not 0"),
        (
            {"extractor": "matricks"},
            "unknown extractor 'matricks'; did you mean 'matrix'. there are levels, matrix, mlp; a plug-in",
        ),
        ({"activation": "sin", "norm": "group"}, "norm must be one of .*; generator's activation must be one of"),
        ({"hidden": ((3,), (3,), (3,))}, "lists widths for 3 banks, the target has 1"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        Hypernet(nn.Linear(3, 2), generator=options)


def test_the_configuration_names_what_there_is():
    with pytest.raises(ValueError, match=f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, not '-'"):
        GeneratorConfig(activation="-")


def test_paper_presets_are_named():
    with pytest.raises(ValueError, match="target must be one of"):
        GeneratorConfig.paper("svhn")
    with pytest.raises(ValueError, match="components must be 1"):
        Hypernet(nn.Linear(3, 2), components=2, generator=GeneratorConfig.paper("mnist"))
    with pytest.raises(ValueError, match="convert the target to one"):
        Hypernet(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()))


def test_an_extractor_gives_a_code_for_every_filter_of_every_network():
    class One(Extractor):
        def __init__(self, latent_dim, filters, config):
            super().__init__(latent_dim, filters, config)
            self.code = nn.Parameter(torch.zeros(1, sum(filters), config.code_size))

        def forward(self, latents):
            return self.code

    class Brings:
        @hookimpl
        def hypernet_register_extractors(self, register):
            register("one", One)

    with pytest.raises(ValueError, match="One must give codes .*, one for every filter, not"):
        Hypernet(nn.Linear(4, 2), generator={"extractor": "one"}, plugins=[Brings()])
