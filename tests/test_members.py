"""Members: kept while nothing changes, and never longer, whatever way weights change."""

import copy

import pytest
import torch
from torch import nn

from lightning_hypernet import Hypernet
from tests.test_hypernet import convnet, mlp

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def made(**options):
    torch.manual_seed(0)
    return Hypernet(mlp(), members=3, execution="loop", **options).eval()


def right(hypernet, x=X):
    """The joined outputs of plain modules, decoded by hand from the members' latents."""
    population = hypernet.decode(hypernet.prior.renewed(hypernet.members.latents))
    return torch.stack([network.eval()(x) for network in hypernet.executor.materialize_all(population.weights, {})]).mean(0)


def by_data(hypernet):
    for parameter in hypernet.generator.parameters():
        parameter.data.mul_(1.1)


def by_new_data(hypernet):
    for parameter in hypernet.generator.parameters():
        parameter.data = parameter.data * 1.1


def by_assigning(hypernet):
    state = {name: value * 1.1 if isinstance(value, torch.Tensor) and value.is_floating_point() else value
             for name, value in hypernet.state_dict().items()}  # fmt: skip
    hypernet.load_state_dict(state, assign=True)


def by_numpy(hypernet):
    for parameter in hypernet.generator.parameters():
        parameter.detach().numpy()[...] *= 1.1


def by_set_(hypernet):
    for parameter in hypernet.generator.parameters():
        parameter.set_(parameter * 1.1)


def by_replacing(hypernet):
    for module in hypernet.generator.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(parameter.detach() * 1.1))


def by_foreach(hypernet):
    torch._foreach_mul_([parameter.data for parameter in hypernet.generator.parameters()], 1.1)


def by_buffers(hypernet):
    for buffer in hypernet.generator.buffers():
        if buffer.is_floating_point():
            buffer.data.add_(0.3)


def by_latents(hypernet):
    hypernet.members.stored.z.data.neg_()


def by_context(hypernet):
    hypernet.member_context[:] = 1.0


WAYS = [by_data, by_new_data, by_assigning, by_numpy, by_set_, by_replacing, by_foreach, by_buffers, by_latents, by_context]


@pytest.mark.parametrize("change", WAYS)
def test_every_change_of_the_weights_is_seen(change):
    hypernet = made(context_dim=2)
    if change is by_context:
        with torch.no_grad():
            for parameter in hypernet.generator.conditioner.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    with torch.no_grad():
        before = hypernet(X)
        assert hypernet.member_population() is hypernet.member_population()
        change(hypernet)
        after = hypernet(X)
        assert torch.allclose(after, right(hypernet), atol=1e-6)
        assert not torch.allclose(after, before, atol=1e-4)
        assert hypernet.member_population() is hypernet.member_population()


def test_functional_calls_use_the_parameters_they_are_given():
    hypernet = made()
    other = copy.deepcopy(hypernet)
    by_data(other)
    with torch.no_grad():
        before = hypernet(X)
        swapped = torch.func.functional_call(hypernet, dict(other.named_parameters()), (X,))
        assert torch.allclose(swapped, other(X), atol=1e-6)
        assert torch.equal(hypernet(X), before)


def test_gradients_and_maps_of_functional_calls():
    hypernet = made()
    parameters = {name: value.detach() for name, value in hypernet.named_parameters()}

    def loss(values):
        return torch.func.functional_call(hypernet, values, (X,)).square().sum()

    hypernet(X)
    gradients = torch.func.grad(loss)(parameters)
    hypernet.zero_grad()
    hypernet(X).square().sum().backward()
    for name, parameter in hypernet.named_parameters():
        assert torch.allclose(gradients[name], torch.zeros(()) if parameter.grad is None else parameter.grad, atol=1e-5), name


def test_another_autocast_dtype_makes_other_members():
    hypernet = made()
    with torch.no_grad():
        exact = hypernet(X)
        outputs = {}
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                outputs[dtype] = hypernet(X)
                fresh = copy.deepcopy(hypernet)
                assert torch.equal(fresh(X), outputs[dtype])
    assert not torch.equal(outputs[torch.bfloat16].float(), outputs[torch.float16].float())
    assert torch.allclose(outputs[torch.float16].float(), exact, atol=2e-2)


def test_the_targets_own_tensors_are_the_members_too():
    torch.manual_seed(0)
    hypernet = Hypernet(convnet(), members=2, exclude=["0.weight"], execution="loop").eval()
    x = torch.randn(5, 1, 8, 8)
    hypernet.update_statistics([x])
    with torch.no_grad():
        hypernet(x)
        hypernet.target[0].weight.data.mul_(2.0)
        hypernet.update_statistics([x])
        outputs = hypernet(x)
        members = [network.eval()(x) for network in hypernet.materialize(hypernet.member_population())]
    assert torch.allclose(outputs, torch.stack(members).mean(0), atol=1e-6)
