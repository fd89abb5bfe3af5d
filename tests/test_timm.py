import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import GeneratorConfig, Hypernet


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        pytest.param("resnet18", {}, 32, marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 4}, 32),
    ],
)
def test_wrap_train_a_step_export(name, options, size):
    torch.manual_seed(0)
    target = timm.create_model(name, num_classes=5, **options)
    hypernet = Hypernet(target, samples=2, members=2, generator=GeneratorConfig.compact()).train()
    x, y = torch.randn(8, 3, size, size), torch.arange(8) % 5
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=3e-3)
    losses = []
    for _ in range(16):
        loss = F.cross_entropy(hypernet(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) / 8 < sum(losses[:4]) / 4
    hypernet.eval().update_statistics([x])
    members = hypernet.materialize(hypernet.member_population())
    with torch.no_grad():
        outputs = torch.stack([member(x) for member in members])
        assert torch.allclose(hypernet(x), outputs.mean(0), atol=1e-4)
    plain = timm.create_model(name, num_classes=5, **options)
    plain.load_state_dict(members[0].state_dict(), strict=True)
    assert hypernet.forward_features(x).shape == plain.forward_features(x).shape
    assert hypernet.num_classes == 5


@pytest.mark.slow
def test_every_parameter_of_a_resnet_and_a_vit_has_a_rule():
    for name in ("resnet50", "vit_tiny_patch16_224"):
        target = timm.create_model(name)
        hypernet = Hypernet(target, generator=GeneratorConfig.compact())
        named = {parameter for parameter, _ in target.named_parameters()}
        assert set(hypernet.banks.shapes) == named
        bare = {bank.name for bank in hypernet.banks if bank.name in named}
        assert bare <= {"cls_token", "pos_embed"}


def test_the_input_size_of_a_timm_model_is_known():
    hypernet = Hypernet(timm.create_model("resnet10t"), generator=GeneratorConfig.compact())
    (example,) = hypernet.symmetries.examples.leaves
    assert example.shape == (2, 3, 176, 176)
    assert Hypernet(nn.Linear(3, 2)).symmetries.examples is None


def test_the_blocks_of_a_vision_transformer_are_reached():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    hypernet = Hypernet(vit, torch.randn(1, 3, 32, 32), samples=2)
    x = torch.randn(4, 5, 192)
    with hypernet.step(), torch.no_grad():
        first, second = hypernet.blocks
        assert torch.equal(second(first(x)), hypernet.blocks(x))
        assert not torch.equal(second(x), first(x))


def marked(name, size, quick=False):
    return pytest.param(name, size, marks=() if quick else pytest.mark.slow, id=name)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        marked("resnet10t", 64, quick=True),
        marked("convnext_atto", 64, quick=True),
        marked("resnet18", 64),
        marked("inception_v4", 96),
        marked("convmixer_768_32", 64),
        marked("vit_tiny_patch16_224", 224),
        marked("efficientnet_b0", 64),
        marked("densenet121", 64),
        marked("mixer_s16_224", 224),
        marked("mobilenetv3_small_050", 64),
        marked("repvgg_a0", 64),
        marked("regnetx_002", 64),
    ],
)
def test_members_are_their_modules_bit_for_bit(name, size):
    """In single precision too: generated weights are contiguous, so that they take the kernels that plain ones take."""
    torch.manual_seed(0)
    options = {
        "members": 2,
        "execution": "loop",
        "generator": GeneratorConfig.compact(),
        "structure": {"norms": {}, "output": None},
    }
    hypernet = Hypernet(timm.create_model(name, num_classes=10), **options)
    x = torch.randn(3, 3, size, size)
    hypernet.update_statistics([x])
    hypernet.eval()
    population = hypernet.member_population()
    assert all(value.is_contiguous() for value in population.weights.values())
    with torch.no_grad():
        outputs = hypernet.run(population, x)
        for output, module in zip(outputs, hypernet.materialize(population), strict=True):
            assert torch.equal(output, module(x))
