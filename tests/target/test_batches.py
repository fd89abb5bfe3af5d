"""How the batch of a training step is dealt out, before the step sees it."""

import copy
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.utils import _pytree

from lightning_hypernet.target.batches import parts_of


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def sizes(batch, networks=3, **options):
    return [size for _, size in parts_of(batch, networks, **options)]


def pieces(batch, networks=3, **options):
    return [part for part, _ in parts_of(batch, networks, **options)]


def equal(one, other):
    first, spec = _pytree.tree_flatten(one)
    second, other_spec = _pytree.tree_flatten(other)
    assert spec == other_spec
    for ours, wanted in zip(first, second, strict=True):
        assert torch.equal(ours, wanted) if isinstance(wanted, torch.Tensor) else ours == wanted
    return True


@pytest.mark.parametrize(("count", "networks", "smallest", "wanted"), [
    (8, 3, 1, [3, 3, 2]), (9, 3, 1, [3, 3, 3]),
    (2, 3, 1, [1, 1]), (1, 3, 1, [1]), (5, 4, 2, [3, 2]), (3, 4, 2, [3]), (1, 4, 2, [1]),
])  # fmt: skip
def test_sizes_differ_by_at_most_one(count, networks, smallest, wanted):
    batch = (numbers(count, 3), numbers(count))
    assert sizes(batch, networks, smallest=smallest) == wanted
    equal(pieces(batch, networks, smallest=smallest), list(zip(*(one.split(wanted) for one in batch), strict=True)))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("form", [list, tuple])
def test_inputs_and_targets(count, form):
    """Batches of two and three examples, where the pair is as long as the batch."""
    x, y, *views = numbers(count, 3), torch.arange(count), *(numbers(count, 3, 4, 4) for _ in range(3))
    parts = [(count + 2) // 3, (count + 1) // 3, count // 3][: min(3, count)]
    rows = list(zip(*(one.split(parts) for one in (x, y, *views)), strict=True))
    equal(pieces(form([x, y])), [form([row[0], row[1]]) for row in rows])
    equal(pieces(form([form(views[:2]), y])), [form([form(row[2:4]), row[1]]) for row in rows])
    equal(pieces(form(views)), [form(row[2:]) for row in rows])
    equal(
        pieces({"x": x, "more": {"v": views[:2]}, "y": y}), [{"x": r[0], "more": {"v": list(r[2:4])}, "y": r[1]} for r in rows]
    )
    equal(pieces(x), [row[0] for row in rows])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_texts_and_numbers_beside_tensors(count):
    batch = {
        "x": numbers(count, 3),
        "name": [f"one {index}" for index in range(count)],
        "weight": tuple(range(count)),
        "meta": [{"id": index, "tags": ["a", "b"]} for index in range(count)],
        "array": np.arange(count),
        "missing": [None] * count,
    }
    found = pieces(batch)
    assert [name for part in found for name in part["name"]] == batch["name"]
    assert [name for part in found for name in part["weight"]] == list(batch["weight"])
    assert [one["id"] for part in found for one in part["meta"]] == list(range(count))
    assert np.array_equal(np.concatenate([part["array"] for part in found]), batch["array"])
    assert all(len(part["x"]) == len(part["name"]) == len(part["meta"]) == len(part["missing"]) for part in found)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("equal_sizes", [True, False])
@pytest.mark.parametrize("form", [list, tuple])
def test_images_and_what_is_in_them(count, equal_sizes, form):
    """Images of three channels, boxes of four numbers, masks: nothing but their number is the batch's."""
    images = form(numbers(3, *((6, 6) if equal_sizes else (5 + index % 2, 6))) for index in range(count))
    targets = form(
        {"boxes": numbers(boxes, 4), "labels": torch.arange(boxes), "masks": numbers(boxes, 6, 6)}
        for boxes in ([count] * count if equal_sizes else range(count))
    )
    found = parts_of((images, targets), 2)
    start = 0
    for (some, wanted), size in found:
        assert type(some) is form and type(wanted) is form
        assert all(one is other for one, other in zip(some, images[start : start + size], strict=True))
        assert all(one is other for one, other in zip(wanted, targets[start : start + size], strict=True))
        start += size
    assert start == count
    stacked = numbers(count, 3, 6, 6)
    for (some, wanted), size in parts_of((stacked, targets), 2):
        assert len(some) == len(wanted) == size


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    "example",
    [
        lambda: (numbers(3, 6, 6), 1),
        lambda: (numbers(3, 6, 6), torch.tensor(1)),
        lambda: [numbers(3), torch.tensor(1)],
        lambda: (numbers(1, 6, 6), numbers(6, 6)),
        lambda: (numbers(3, 6, 6), numbers(3, 6, 6)),
        lambda: numbers(3, 6, 6),
        lambda: {"image": numbers(3, 6, 6), "boxes": numbers(2, 4)},
        lambda: (numbers(3, 6, 6), {"boxes": numbers(2, 4), "labels": torch.arange(2)}),
    ],
)
def test_lists_of_examples(count, example):
    batch = [example() for _ in range(count)]
    found = parts_of(batch, 2)
    assert [size for _, size in found] == [(count + 1) // 2, count // 2]
    assert [id(one) for part, _ in found for one in part] == [id(one) for one in batch]


Sample = namedtuple("Sample", ["x", "y", "name"])


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    y: torch.Tensor
    scale: float = 2.0
    made: list = field(default_factory=list)


class Encoding(UserDict):
    """As transformers' BatchEncoding: a mapping with a state beside, and attributes for its keys."""

    def __init__(self, data, encodings):
        super().__init__(data)
        self.encodings = encodings

    def __getattr__(self, name):
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


def test_classes_of_the_users():
    x, y = numbers(7, 3), torch.arange(7)
    for part, a, b in zip(pieces(Sample(x, y, "name")), x.split([3, 2, 2]), y.split([3, 2, 2]), strict=True):
        assert type(part) is Sample and part.name == "name"
        equal([part.x, part.y], [a, b])
    for part, a, b in zip(pieces(Record(x, y)), x.split([3, 2, 2]), y.split([3, 2, 2]), strict=True):
        assert type(part) is Record and part.scale == 2.0
        equal([part.x, part.y], [a, b])
    batch = Encoding({"input_ids": y[:, None].expand(7, 5), "labels": y}, ["kept"])
    before = copy.copy(batch.data)
    for part, b in zip(pieces(batch), y.split([3, 2, 2]), strict=True):
        assert type(part) is Encoding and part.encodings == ["kept"]
        equal([part.input_ids, part["labels"]], [b[:, None].expand(len(b), 5), b])
    assert all(batch.data[key] is value for key, value in before.items())
    for part in pieces(OrderedDict(x=x, y=y)):
        assert type(part) is OrderedDict and list(part) == ["x", "y"]


def test_packed_sequences():
    lengths = [2, 5, 1, 4, 3]
    sequences = [numbers(length, 3) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=False)
    found = parts_of((packed, torch.arange(5)), 2)
    assert [size for _, size in found] == [3, 2]
    equal([one for (part, _), _ in found for one in unpack_sequence(part)], sequences)
    equal(torch.cat([y for (_, y), _ in found]), torch.arange(5))
    (alone, _), (_, _) = parts_of(packed, 2)
    equal(unpack_sequence(alone), sequences[:3])


class Graphs:
    """A stand-in for the batches of torch_geometric: several graphs as one, with their list form."""

    def __init__(self, graphs):
        self.graphs = graphs
        self.x = torch.cat(graphs)
        self.batch = torch.cat([torch.full((len(one),), index) for index, one in enumerate(graphs)])

    def to_data_list(self):
        return self.graphs

    @classmethod
    def from_data_list(cls, graphs):
        return cls(graphs)


@pytest.mark.parametrize("counts", [(3, 2, 4, 1, 5), (5, 5, 5, 5, 5), (2, 2)])
def test_graphs_through_their_own_lists(counts):
    graphs = Graphs([numbers(count, 3) for count in counts])
    y = torch.arange(len(counts))
    for batch in (graphs, (graphs, y), {"graph": graphs, "y": y}):
        found = parts_of(batch, 2)
        assert [size for _, size in found] == [(len(counts) + 1) // 2, len(counts) // 2]
        made = [next(iter(part.values())) if isinstance(part, dict) else part[0] if isinstance(part, tuple) else part
                for part, _ in found]  # fmt: skip
        equal(torch.cat([one.x for one in made]), graphs.x)
        assert all(one.batch.unique().tolist() == list(range(size)) for one, (_, size) in zip(made, found, strict=True))


def test_graphs_of_torch_geometric():
    data = pytest.importorskip("torch_geometric.data")
    graphs = [
        data.Data(x=numbers(count, 3), edge_index=torch.tensor([[0, count - 1], [count - 1, 0]]), y=torch.tensor([count]))
        for count in (3, 5, 2, 4, 6)
    ]
    batch = data.Batch.from_data_list(graphs)
    found = parts_of(batch, 2)
    assert [size for _, size in found] == [3, 2]
    for (part, _), wanted in zip(found, (graphs[:3], graphs[3:]), strict=True):
        expected = data.Batch.from_data_list(wanted)
        for name in ("x", "edge_index", "y", "batch", "ptr"):
            assert torch.equal(part[name], expected[name])
    with pytest.raises(TypeError, match="the batch holds a Data"):
        parts_of((graphs[0], numbers(4)), 2)


@pytest.mark.parametrize(("length", "count"), [(7, 4), (4, 4), (2, 4), (4, 2)])
def test_time_first(length, count):
    x, y, mask, z = numbers(length, count, 3), numbers(count), numbers(length, length), numbers(length, count)
    halves = [one.tensor_split(2, dim) for one, dim in ((x, 1), (y, 0), (z, 1))]
    if length != count:  # what else has the batch's size shows where it lies
        for part, a, b in zip(pieces((x, y), 2), *halves[:2], strict=True):
            equal(part, (a, b))
        for part, a, b in zip(pieces((x, mask, y), 2, batch_dim=1), *halves[:2], strict=True):
            equal(part, (a, mask, b))
    for part, a, c in zip(pieces((x, z), 2, batch_dim=1), halves[0], halves[2], strict=True):
        equal(part, (a, c))
    for part, a, b, c in zip(pieces((x, y, z), 2, batch_dim=1), *halves, strict=True):
        equal(part, (a, b, c))
    said = {"x": 1, "mask": None, "y": 0, "z": 1}
    named = pieces({"mask": mask, "x": x, "y": y, "z": z}, 2, batch_dim=said)
    for part, a, b, c in zip(named, *halves, strict=True):
        equal(part, {"mask": mask, "x": a, "y": b, "z": c})


def test_what_has_not_the_size_of_the_batch_is_shared():
    shared = {
        "step": torch.tensor(3.0), "weights": numbers(5), "table": numbers(5, 4), "lr": 0.1, "none": None, "flag": True,
        "text": "epoch", "shape": torch.Size([4, 3]), "pair": (2, 3), "empty": [], "kind": int,
    }  # fmt: skip
    for part in pieces({"x": numbers(4, 3, 8, 8), "y": numbers(4), **shared}, 2):
        assert len(part["x"]) == len(part["y"]) == 2
        assert all(part[key] is value or part[key] == value for key, value in shared.items())


def test_states_lie_along_their_second_axis():
    x, state = numbers(6, 5, 3), numbers(2, 6, 4)
    for part, a, b in zip(pieces((x, state), 2), x.split(3), state.split(3, 1), strict=True):
        equal(part, (a, b))


def test_gradients_and_memory_are_the_batch_s():
    x = numbers(6, 3).requires_grad_()
    (first, _), (second, _) = parts_of(x, 2)
    (2 * first.sum() + second.sum()).backward()
    assert torch.equal(x.grad, torch.tensor([2.0, 1.0]).double().repeat_interleave(3)[:, None].expand(6, 3))
    assert first.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("hidden", [lambda x: {"x": x}, lambda x: [x], lambda x: x])
def test_opaque_objects_are_refused(hidden):
    class Opaque:
        def __init__(self):
            self.held = hidden(numbers(4, 3))

    for batch in (Opaque(), (numbers(4, 3), Opaque()), {"x": numbers(4), "more": [Opaque()]}):
        with pytest.raises(TypeError, match="the batch holds a Opaque; give the callback deal=function"):
            parts_of(batch, 2)


@pytest.mark.parametrize("batch", [(), {}, None, 3, "text", ("a", 1), torch.tensor(1.0), []])
def test_nothing_to_deal_out(batch):
    with pytest.raises(ValueError, match="nothing that could be dealt out; give the callback deal=function"):
        parts_of(batch, 2)
