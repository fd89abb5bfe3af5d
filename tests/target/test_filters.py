import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_hypernet import Hypernet, hookimpl
from lightning_hypernet.plugins import PluginError, Plugins
from lightning_hypernet.symmetry.graph import export
from lightning_hypernet.symmetry.structure import read_structure
from lightning_hypernet.target.filters import Slot, find_filters
from lightning_hypernet.target.layers import rows
from tests.targets import KINDS, Tied


def banks_of(target, **options):
    return find_filters(target, Plugins().rules, **options)


def split(banks, filters):
    """The slots of every bank, of its filters."""
    return [values.split([slot.size for slot in bank.slots], dim=-1) for bank, values in zip(banks, filters, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_assemble_inverts_flatten(kind):
    torch.manual_seed(0)
    target = KINDS[kind].make()
    banks = banks_of(target)
    weights = {name: torch.randn(3, *shape) for name, shape in banks.shapes.items()}
    restored = banks.assemble(split(banks, banks.flatten(weights)))
    assert restored.keys() == weights.keys()
    assert all(torch.equal(restored[name], weights[name]) for name in weights)
    filters = [torch.randn(3, bank.filters, bank.filter_size) for bank in banks]
    again = banks.flatten(banks.assemble(split(banks, filters)))
    assert all(torch.equal(one, other) for one, other in zip(again, filters, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_place(kind):
    target = KINDS[kind].make()
    banks = banks_of(target)
    assert set(banks.shapes) | set(banks.ordinary) == {name for name, _ in target.named_parameters()}
    assert banks.weights == sum(parameter.numel() for parameter in target.parameters())


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    bias=st.booleans(),
)
def test_a_filter_makes_exactly_one_output_unit(groups, inputs, outputs, kernel, bias):
    """Changing filter u changes output channel u and no other, for plain and transposed grouped convolutions."""
    for conv in (nn.Conv2d, nn.ConvTranspose2d):
        torch.manual_seed(0)
        layer = conv(groups * inputs, groups * outputs, kernel, groups=groups, bias=bias).double()
        banks = banks_of(layer, merge=())
        (bank,) = banks
        assert bank.filters == groups * outputs
        weights = {name: parameter.detach()[None] for name, parameter in layer.named_parameters()}
        x = torch.randn(1, groups * inputs, 4, 4, dtype=torch.float64)
        before = layer(x)
        for unit in range(bank.filters):
            (filters,) = banks.flatten(weights)
            filters = filters.clone()
            filters[:, unit] += 1
            changed = {name: value[0] for name, value in banks.assemble(split(banks, [filters])).items()}
            difference = (torch.func.functional_call(layer, changed, (x,)) - before).abs().amax((0, 2, 3))
            assert (difference > 1e-9).nonzero().flatten().tolist() == [unit]


def test_norm_rides_with_the_layer_in_front():
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 4), nn.Dropout(), nn.LayerNorm(4))
    first, second = banks_of(target, merge=())
    assert [slot.parameter for slot in first.slots] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [slot.parameter for slot in second.slots] == ["3.weight", "3.bias", "5.weight", "5.bias"]


def test_norm_behind_an_activation_is_a_bank_of_its_own():
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    assert [bank.name for bank in banks_of(target, merge=())] == ["0", "2"]


class Backwards(nn.Module):
    """Layers that the order of the modules shows wrongly, and the graph as they are."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.norm, self.conv, self.other = nn.LayerNorm(4), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.behind, self.stray, self.sum = nn.BatchNorm2d(4), nn.BatchNorm2d(3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.conv(self.stray(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.behind(self.other(x).relu())
        return self.head(self.sum(x + y).mean((2, 3))).softmax(-1)


def test_the_graph_shows_what_the_order_of_the_modules_does_not():
    target, x = Backwards(), torch.randn(2, 3, 6, 6)
    structure = read_structure(export(target, (x,), {}).evaluation)
    layers = {"norm": "conv", "behind": "other"}
    assert structure.norms == {
        f"{norm}.{key}": f"{layer}.weight" for norm, layer in layers.items() for key in ("weight", "bias")
    }
    assert structure.output == "head.weight"
    hypernet = Hypernet(target, example_inputs=x)
    held = {bank.name: [slot.parameter for slot in bank.slots] for bank in hypernet.banks}
    assert held == {
        "head": ["head.weight", "head.bias"],
        "conv": ["conv.weight", "conv.bias", "norm.weight", "norm.bias"],
        "other": ["other.weight", "other.bias", "behind.weight", "behind.bias"],
        "stray": ["stray.weight", "stray.bias"],
        "sum": ["sum.weight", "sum.bias"],
    }
    assert {bank.name for bank in hypernet.banks if bank.filters == 1} == {"head"}
    assert {bank.name for bank in Hypernet(target).banks if bank.filters == 1} == {"other"}
    excluded = Hypernet(target, example_inputs=x, exclude=["norm.weight", "other.*"])
    assert [bank.name for bank in excluded.banks] == ["head", "conv", "behind", "stray", "sum"]


def test_the_graph_sees_through_a_weight_that_is_computed():
    target = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    structure = read_structure(export(target, (torch.randn(2, 3, 5, 5),), {}).evaluation)
    assert {name: layer.rpartition(".")[0] for name, layer in structure.norms.items()} == {
        "1.weight": "0.parametrizations.weight",
        "1.bias": "0.parametrizations.weight",
    }


def test_inputs_that_do_not_fit_the_target_are_told():
    with pytest.raises(ValueError, match=r"example_inputs of \(2, 5\) do not go through Linear: mat1 and mat2"):
        Hypernet(nn.Linear(3, 4), example_inputs=torch.randn(2, 5))


def test_packed_attention_is_three_banks():
    banks = list(banks_of(nn.MultiheadAttention(8, 2), merge=()))
    assert [bank.name for bank in banks] == [
        "MultiheadAttention[0]",
        "MultiheadAttention[1]",
        "MultiheadAttention[2]",
        "out_proj",
    ]
    assert [slot.start for bank in banks[:3] for slot in bank.slots] == [0, 0, 8, 8, 16, 16]
    assert [bank.filter_size for bank in banks] == [9] * 4


def test_recurrent_filter_is_a_gate_of_a_unit():
    (bank, *_) = banks_of(nn.LSTM(3, 5))
    assert (bank.filters, bank.filter_size) == (20, 3 + 5 + 1 + 1)


def test_tied_parameters_are_generated_once():
    target = Tied()
    banks = banks_of(target)
    assert banks.aliases["encoder.weight"] == ("encoder.weight", "back.weight")
    assert "back.weight" not in banks.shapes
    hypernet = Hypernet(target)
    (module,) = hypernet.materialize(hypernet.sample(1))
    assert module.encoder.weight is module.back.weight


def test_last_layer_is_one_filter_while_it_is_small():
    target = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    assert [bank.filters for bank in banks_of(target)] == [9, 1]
    assert [bank.filters for bank in banks_of(target, merge_limit=29)] == [9, 3]
    assert [bank.filters for bank in banks_of(target, merge=(0, 1))] == [1, 1]


def test_subclasses_count():
    class Special(nn.Conv2d):
        def __init__(self):
            super().__init__(2, 4, 3)
            self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
            self.other = nn.Parameter(torch.ones(7))

    bank, other = banks_of(Special(), merge=())
    assert bank.filter_size == 2 * 9 + 1 + 1
    assert other.name == "other"


def test_patterns_choose_what_is_generated():
    target = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 3))
    target[2].bias.requires_grad_(False)
    banks = banks_of(target, generate=("0.*", "2.*"), exclude=("*.weight",))
    assert list(banks.shapes) == ["0.bias"]
    assert banks.ordinary["1.weight"] == "not chosen by the patterns"
    assert banks.ordinary["2.bias"] == "frozen"
    hypernet = Hypernet(target, exclude=("*.weight",))
    assert isinstance(hypernet.target[0].weight, nn.Parameter)
    assert hypernet.target[0].bias is None
    summary = hypernet.summary()
    assert all(name in summary for name, _ in target.named_parameters())
    assert "left as it is: not chosen by the patterns" in summary
    assert "symmetries not read: the symmetries are read with example inputs" in summary


def test_custom_layer_by_plugin():
    class Shelf(nn.Module):
        def __init__(self):
            super().__init__()
            self.books = nn.Parameter(torch.randn(3, 5))

        def forward(self, x):
            return x @ self.books

    class Plugin:
        @hookimpl
        def hypernet_register_filters(self, register):
            register(Shelf, lambda module: [[Slot("books", (3, 5), (3, 5), (1,))]])

    hypernet = Hypernet(Shelf(), plugins=[Plugin()])
    assert [(bank.filters, bank.filter_size) for bank in hypernet.banks] == [(5, 3)]
    assert [bank.filters for bank in Hypernet(Shelf()).banks] == [1]

    class Wrong:
        @hookimpl
        def hypernet_register_filters(self, register):
            register(Shelf, lambda module: [[Slot("books", (2, 5), (2, 5))]])

    with pytest.raises(ValueError, match=r"books: the rule covers 2 of 3 rows, 0 twice"):
        Hypernet(Shelf(), plugins=[Wrong()])

    class Uneven:
        @hookimpl
        def hypernet_register_filters(self, register):
            register(Shelf, lambda module: [[Slot("books", (1, 5), (1, 5), (), start)] for start in (0, 1, 1)])

    with pytest.raises(ValueError, match=r"books: the rule covers 2 of 3 rows, 1 twice"):
        Hypernet(Shelf(), plugins=[Uneven()])

    class Twice:
        @hookimpl
        def hypernet_register_filters(self, register):
            register(nn.Linear, rows)

    with pytest.raises(PluginError, match="'Twice' failed: Linear already has a filter rule"):
        Plugins([Twice()])


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (nn.ReLU(), {}, "ReLU has no parameters"),
        (nn.Linear(2, 2), {"generate": ("conv*",)}, "'conv\\*' matches no parameter; the first names are weight, bias"),
        (nn.Linear(2, 2), {"exclude": ("*",)}, "no parameter of Linear is generated: weight .not chosen"),
        (nn.LazyLinear(2), {}, "weight is not initialised; .*bias is not initialised"),
    ],
)
def test_bad_targets(target, options, message):
    with pytest.raises(ValueError, match=message):
        banks_of(target, **options)


def test_slots_enumerate_any_axes():
    slot = Slot("w", (4, 3, 2), (2, 2, 3, 2), (0, 2))
    values = torch.arange(24.0).reshape(1, 4, 3, 2)
    assert slot.filters == 6
    assert slot.size == 4
    assert torch.equal(slot.scatter(slot.gather(values)), values)
    assert math.prod(slot.gather(values).shape) == 24
