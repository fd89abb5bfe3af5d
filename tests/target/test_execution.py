import warnings
from collections import OrderedDict, deque
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_hypernet import Hypernet
from lightning_hypernet.target.reduction import reduce_outputs
from tests.targets import KINDS, leaves


def wrapped(kind, **options):
    torch.manual_seed(0)
    target = KINDS[kind].make().double().eval()
    return Hypernet(target, samples=4, latent_dim=5, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_generator_parameter(kind):
    hypernet = wrapped(kind).train()
    outputs = leaves(hypernet(*KINDS[kind].inputs()))
    sum((leaf * torch.randn_like(leaf)).sum() for leaf in outputs).backward()
    unreached = [name for name, p in hypernet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind):
    hypernet = wrapped(kind).train()
    inputs = KINDS[kind].inputs()
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=3e-3)
    wanted = [torch.randn_like(leaf) for leaf in leaves(hypernet(*inputs))]
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = sum((leaf - want).square().mean() for leaf, want in zip(leaves(hypernet(*inputs)), wanted, strict=True))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.filterwarnings("ignore:.*are no averages over batches")
@pytest.mark.parametrize("kind", KINDS)
def test_exports_load_into_the_plain_target(kind):
    hypernet = wrapped(kind)
    population = hypernet.sample(1)
    hypernet.update_statistics([KINDS[kind].inputs()[0]], population)
    (module,) = hypernet.materialize(population)
    KINDS[kind].make().double().load_state_dict(module.state_dict(), strict=True)
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in KINDS[kind].make().named_parameters()]
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in module.parameters())


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 50)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.layer(x) * 0 + 1)


@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_dropout_differs_between_networks(execution):
    torch.manual_seed(0)
    hypernet = Hypernet(Noisy(), samples=4, execution=execution).train()
    outputs = hypernet.run(hypernet.sample(4), torch.randn(2, 3))
    assert len({tuple(row.flatten().tolist()) for row in outputs}) == 4


class Stateful(nn.Module):
    """Changes a buffer, an attribute and a mode whenever it runs, and stops on demand."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.cache = None
        self.history = []
        self._ordered = OrderedDict()
        self._nested = {"inputs": deque()}

    def forward(self, x, fail=False):
        self.calls += 1
        self.history.append(x)
        self._ordered["x"] = x
        self._nested["inputs"].append(x)
        self.cache = x
        self.norm.eval()
        if fail:
            raise RuntimeError("stopped")
        return self.norm.train()(x)


@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.filterwarnings("ignore:Vmap cannot run")
def test_the_target_is_left_as_it_was(execution, fail):
    torch.manual_seed(0)
    hypernet = Hypernet(Stateful(), samples=2, execution=execution).train()
    target = hypernet.target
    before = {name: value.clone() for name, value in target.named_buffers()}
    weights = {name: module._parameters.copy() for name, module in target.named_modules()}
    with pytest.raises(RuntimeError, match="^stopped$") if fail else nullcontext():
        hypernet(torch.randn(8, 3), fail=fail)
    assert all(torch.equal(before[name], value) for name, value in target.named_buffers())
    assert weights == {name: module._parameters for name, module in target.named_modules()}
    assert target.cache is None
    assert (target.history, target._ordered, target._nested) == ([], {}, {"inputs": deque()})
    assert all(module.training for module in target.modules())


def test_norm_layers_see_their_own_part_of_the_batch():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.BatchNorm1d(3), samples=3).double().train()
    x = torch.randn(12, 3, dtype=torch.float64) + torch.arange(12)[:, None]
    output = hypernet(x)
    weights = hypernet.population.weights
    for index, part in enumerate(x.split(4)):
        normal = (part - part.mean(0)) / (part.var(0, correction=0) + 1e-5).sqrt()
        expected = normal * weights["weight"][index] + weights["bias"][index]
        assert torch.allclose(output[4 * index : 4 * index + 4], expected, atol=1e-12)


@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("batch", [1, 3, 4, 7, 12])
def test_outputs_come_in_the_order_of_the_inputs(execution, batch):
    """Whatever the batch size: row i is what the network that got row i makes of it."""
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 2).double(), samples=4, execution=execution).train()
    x = torch.randn(batch, 3, dtype=torch.float64)
    output = hypernet(x)
    everything = hypernet.run(hypernet.population, x)
    part = [index for index, rows in enumerate(torch.arange(batch).tensor_split(min(batch, 4))) for _ in rows]
    assert torch.allclose(output, everything[part, range(batch)], atol=1e-12)


@pytest.mark.parametrize(("batch", "parts"), [(2, [2]), (5, [3, 2]), (9, [3, 2, 2, 2])])
def test_norm_layers_get_two_examples_or_more(batch, parts):
    """The last, incomplete batch of an epoch must not stop a target with batch norm."""
    torch.manual_seed(0)
    hypernet = Hypernet(nn.BatchNorm1d(3), samples=4).double().train()
    x = torch.randn(batch, 3, dtype=torch.float64)
    output = hypernet(x)
    weights = hypernet.population.weights
    for index, (ours, part) in enumerate(zip(output.split(parts), x.split(parts), strict=True)):
        expected = F.batch_norm(part, None, None, weights["weight"][index], weights["bias"][index], training=True)
        assert torch.allclose(ours, expected, atol=1e-12)


def test_states_of_recurrent_layers_are_dealt_along_their_second_axis():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.LSTM(3, 5, num_layers=2, batch_first=True).double(), samples=3).train()
    x, h, c = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 4, 3), (2, 7, 5), (2, 7, 5)))
    output, (last, _) = hypernet(x, (h, c))
    assert output.shape == (7, 4, 5)
    assert last.shape == (2, 7, 5)
    assert torch.equal(output[:, -1], last[-1])


@pytest.mark.parametrize(("layers", "batch"), [(2, 6), (2, 8), (1, 3), (3, 9), (2, 7)])
def test_the_axis_of_the_batch_is_found_where_sizes_coincide(layers, batch):
    """Two layers and parts of two examples: the state's axes have one length, and yet the second is the batch's."""
    torch.manual_seed(0)
    hypernet = Hypernet(nn.LSTM(3, 5, num_layers=layers, batch_first=True).double(), samples=3).train()
    output, (last, _) = hypernet(torch.randn(batch, 4, 3, dtype=torch.float64))
    assert last.shape == (layers, batch, 5)
    assert torch.equal(output[:, -1], last[-1])


def test_a_flattened_batch_is_joined_along_its_first_axis():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(x).flatten(0, 1), x.mean()

    torch.manual_seed(0)
    hypernet = Hypernet(Flat().double(), samples=3).train()
    x = torch.randn(12, 5, 3, dtype=torch.float64)
    output, mean = hypernet(x)
    expected = [module(part)[0] for module, part in zip(hypernet.materialize(hypernet.population), x.split(4), strict=True)]
    assert torch.allclose(output, torch.cat(expected), atol=1e-12)
    assert torch.allclose(mean, x.mean())


def test_what_holds_no_tensor_is_refused():
    class Opaque:
        x = torch.zeros(8, 3)

    class Reader(nn.Linear):
        def forward(self, batch):
            return super().forward(batch.x)

    class Distributed(nn.Linear):
        def forward(self, x):
            return torch.distributions.Normal(super().forward(x), 1.0)

    with pytest.raises(TypeError, match=r"there is no batch to deal out in the arguments \(Opaque\)"):
        Hypernet(Reader(3, 2)).train()(Opaque())
    with pytest.raises(TypeError, match="the target returns Normal, whose tensors can't be joined"):
        Hypernet(Distributed(3, 2), samples=2).train()(torch.randn(8, 3))


def test_scalars_go_to_all_networks():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.weight * x

    hypernet = Hypernet(Scaled().double(), samples=4).train()
    output = hypernet(torch.tensor(2.0, dtype=torch.float64))
    assert torch.allclose(output, 2 * hypernet.population.weights["weight"].mean(0))


def test_reductions():
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]], [[0.0, 1.0]]])
    assert torch.allclose(reduce_outputs(logits, "mean"), torch.tensor([[2 / 3, 4 / 3]]))
    assert torch.allclose(reduce_outputs(logits, "majority"), torch.tensor([[1 / 3, 2 / 3]]))
    assert torch.allclose(reduce_outputs(logits, "log_mean_prob").exp(), logits.softmax(-1).mean(0))
    assert reduce_outputs({"a": logits}, None)["a"] is logits
    assert reduce_outputs(torch.tensor([[1], [2], [2]]), "mean").tolist() == [2]


def test_chunks_change_nothing():
    torch.manual_seed(0)
    hypernet = Hypernet(nn.Linear(3, 2).double(), execution="vmap").eval()
    population, x = hypernet.sample(5), torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(hypernet.run(population, x), hypernet.run(population, x, chunk_size=2), atol=1e-14)


def test_integer_images_name_the_remedy():
    hypernet = Hypernet(nn.Linear(3, 2)).train()
    with pytest.raises(TypeError, match="Linear cannot run on inputs of torch.uint8; convert them"):
        hypernet(torch.zeros(8, 3, dtype=torch.uint8))


def test_unknown_execution():
    with pytest.raises(ValueError, match="unknown backend 'fast'; there are batched, blocked, loop, vmap"):
        Hypernet(nn.Linear(3, 2), execution="fast")


def test_fallback_warns_once():
    hypernet = wrapped("lstm", execution="vmap")
    with pytest.warns(UserWarning, match="Vmap cannot run Recurrent, so its networks run one after the other"):
        hypernet.run(hypernet.sample(2), *KINDS["lstm"].inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypernet.run(hypernet.sample(2), *KINDS["lstm"].inputs())
