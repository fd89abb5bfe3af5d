"""How a call in training is dealt out and joined, against each network alone on its part, joined by hand."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree

from lightning_hypernet import Hypernet
from lightning_hypernet.target.arguments import Arguments

DOUBLE = torch.float64
BATCHES = (16, 32, 40, 56, 64, 128)
"""With 8 networks, parts of 2, 4, 5, 7, 8 and 16 examples."""


def wrapped(target, samples=8, **options):
    torch.manual_seed(0)
    return Hypernet(target.double(), samples=samples, latent_dim=5, **options).train()


def numbers(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def alone(hypernet, parts, **kwargs):
    """What each network of the last call makes of its part, as a plain module; a part is a tuple of arguments."""
    modules = hypernet.materialize(hypernet.population)
    with torch.no_grad():
        return [module(*part, **kwargs) for module, part in zip(modules, parts, strict=False)]


def split(count, *tensors, dim=0):
    """Parts whose sizes differ by at most one, the larger first."""
    return list(zip(*(tensor.tensor_split(count, dim) for tensor in tensors), strict=True))


def same(one, other):
    first, spec = _pytree.tree_flatten(one)
    second, other_spec = _pytree.tree_flatten(other)
    assert spec == other_spec
    for ours, theirs in zip(first, second, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert ours.shape == theirs.shape
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)
        else:
            assert type(ours) is type(theirs) and ours == theirs
    return True


def weighted(values, sizes):
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def of(function, inputs=3, outputs=4):
    """A target: a linear layer and what a function makes of it and the arguments."""

    class Target(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(inputs, outputs)

        def forward(self, *args, **kwargs):
            return function(self.layer, *args, **kwargs)

    return Target()


# Lists of images


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images, targets=None):
        found = torch.stack([self.head(self.conv(image[None]).mean((2, 3)))[0] for image in images])
        if targets is None:
            return [{"scores": one, "labels": one.argmax()[None]} for one in found]
        wanted = torch.stack([target["boxes"].mean(0) for target in targets])
        return {"loss": (found - wanted).square().mean(), "size": found.abs().mean()}


def images_of(sizes):
    return [numbers(3, size, size) for size in sizes]


@pytest.mark.parametrize("count", [2, 3, 8, 11])
@pytest.mark.parametrize("equal", [True, False])
def test_lists_of_images_are_dealt_out(count, equal):
    hypernet = wrapped(Detector(), samples=4)
    images = images_of([6] * count if equal else [5 + index % 3 for index in range(count)])
    targets = [{"boxes": numbers(1 + index % 2, 2)} for index in range(count)]
    parts = min(4, count)
    ends = torch.tensor([len(one) for one in torch.arange(count).tensor_split(parts)]).cumsum(0).tolist()
    pieces = [(images[start:end], targets[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    ours = hypernet(images, targets)
    outputs = alone(hypernet, pieces)
    sizes = [len(one) for one, _ in pieces]
    same(ours, {key: weighted([output[key] for output in outputs], sizes) for key in ("loss", "size")})
    lists = hypernet(images)
    same(lists, [one for output in alone(hypernet, [(one,) for one, _ in pieces]) for one in output])


@pytest.mark.parametrize("batch_dim", [None, "list"])
@pytest.mark.parametrize("first", [1, 3])
def test_lists_of_one_image_and_of_three(first, batch_dim):
    """As many as there are channels, or one for a single network: whichever comes first."""
    hypernet = wrapped(Detector(), samples=3, batch_dim=batch_dim)
    for count in (first, 3, 1, 2):
        images = images_of([6] * count)
        ours = hypernet(images)
        same(ours, [one for output in alone(hypernet, [([image],) for image in images]) for one in output])


@pytest.mark.parametrize("returned", ["all", "loss"])
def test_lists_whose_sum_is_taken_hold_inputs(returned):
    """Such a target would run on each entry as well."""
    total = wrapped(of(lambda layer, xs: layer(sum(xs)) if returned == "all" else layer(sum(xs)).square().mean()), samples=2)
    one, other = numbers(8, 3), numbers(8, 3)
    ours = total([one, other])
    outputs = alone(total, [([a, b],) for a, b in split(2, one, other)])
    same(ours, torch.cat(outputs) if returned == "all" else sum(outputs) / 2)


def test_boxes_whose_shapes_differ_between_members_are_refused():
    def boxes(layer, images):
        scores = torch.stack([layer(image.mean((1, 2))) for image in images])
        return [{"boxes": one[one > 0]} for one in scores]

    hypernet = wrapped(of(boxes, outputs=9)).eval()
    images = images_of([6] * 4)
    with pytest.raises(ValueError, match="reduce=None"):
        hypernet(images)
    hypernet.reduce = None
    modules = hypernet.materialize(hypernet.member_population())
    for ours, wanted in zip(zip(*(one["boxes"] for one in hypernet(images)), strict=True), modules, strict=True):
        same(list(ours), [one["boxes"] for one in wanted(images)])


@pytest.mark.parametrize("form", [list, tuple])
def test_lists_that_hold_inputs_are_dealt_out_one_by_one(form):
    def add(layer, pair):
        one, other = pair
        return layer(one) + 2 * layer(other)

    for batch in (8, 2, 9):
        hypernet = wrapped(of(add), samples=2)
        one, other = numbers(batch, 3), numbers(batch, 3)
        ours = hypernet(form([one, other]))
        same(ours, torch.cat(alone(hypernet, [(form(part),) for part in split(2, one, other)])))


def test_a_list_can_be_said_to_hold_examples():
    class Listed(nn.Linear):
        def forward(self, examples, scale):
            return [super(Listed, self).forward(one * scale) for one in examples]

    hypernet = wrapped(Listed(3, 4), samples=2, batch_dim={"examples": "list", "scale": None})
    examples, scale = [numbers(3) for _ in range(3)], numbers(3)
    ours = hypernet(examples, scale)
    same(ours, [one for output in alone(hypernet, [(examples[:2], scale), (examples[2:], scale)]) for one in output])
    with pytest.raises(ValueError, match="batch_dim names images"):
        wrapped(Listed(3, 4), batch_dim={"images": "list"})(examples, scale)


# Sizes that coincide


COINCIDING = {
    "loads": lambda layer, x: (layer(x), layer(x).softmax(-1).mean(0)),
    "prototypes": lambda layer, x: (layer(x), layer.weight * 1.0),
    "codebook": lambda layer, x: (layer(x), layer.weight.T.square()),
    "bias": lambda layer, x: {"out": layer(x), "bias": layer.bias * 2, "matrix": layer(x).T @ layer(x) / len(x)},
    "variances": lambda layer, x: (layer(x).square().mean(0), layer(x)),
}


@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("name", COINCIDING)
def test_what_does_not_follow_the_batch_is_averaged_at_every_size(name, execution):
    def joined(hypernet, x):
        outputs = alone(hypernet, split(8, x))
        sizes = [len(part) for (part,) in split(8, x)]
        flat = [_pytree.tree_flatten(output) for output in outputs]
        leaves = [
            torch.cat(column) if wanted.shape == (len(x), 8) else weighted(column, sizes)
            for column, wanted in zip(zip(*(leaves for leaves, _ in flat), strict=True),
                                      _pytree.tree_leaves(hypernet.materialize(hypernet.population)[0](x)), strict=True)
        ]  # fmt: skip
        return _pytree.tree_unflatten(leaves, flat[0][1])

    for first in BATCHES:  # whatever size comes first
        hypernet = wrapped(of(COINCIDING[name], outputs=8), execution=execution)
        for batch in (first, 48, 64, 56, 19):
            x = numbers(batch, 3)
            same(hypernet(x), joined(hypernet, x))


@pytest.mark.parametrize("batch", [4, 6, 12, 24])
def test_masks_of_the_length_are_shared(batch):
    length = 6
    hypernet = wrapped(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), samples=3)
    x, mask = numbers(batch, length, 8), torch.full((length, length), float("-inf"), dtype=DOUBLE).triu(1)
    padding = torch.zeros(batch, length, dtype=DOUBLE)
    padding[:, -1] = float("-inf")
    ours = hypernet(x, src_mask=mask, src_key_padding_mask=padding)
    modules = hypernet.materialize(hypernet.population)
    parts = zip(modules, split(3, x, padding), strict=True)
    same(ours, torch.cat([module(one, src_mask=mask, src_key_padding_mask=pad) for module, (one, pad) in parts]))


@pytest.mark.parametrize("sizes", [(2, 4, 6), (4, 2), (3, 2), (2, 3)])
def test_the_axis_of_a_state_of_as_many_layers_as_examples(sizes):
    hypernet = wrapped(nn.LSTM(3, 5, num_layers=2, batch_first=True), samples=2)
    for batch in sizes:
        x, h, c = numbers(batch, 4, 3), numbers(2, batch, 5), numbers(2, batch, 5)
        output, (last, _) = hypernet(x, (h, c))
        parts = zip(x.tensor_split(2), zip(h.tensor_split(2, 1), c.tensor_split(2, 1), strict=True), strict=True)
        outputs = alone(hypernet, parts)
        same((output, last), (torch.cat([one for one, _ in outputs]), torch.cat([state[0] for _, state in outputs], 1)))


@pytest.mark.parametrize("sizes", [(6,), (4, 6), (6, 4), (12, 6, 3)])
def test_masks_of_the_length_where_the_batch_is_said_to_lie_second(sizes):
    length = 6
    hypernet = wrapped(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), samples=3, batch_dim=1)
    for batch in sizes:
        x, mask = numbers(length, batch, 8), torch.full((length, length), float("-inf"), dtype=DOUBLE).triu(1)
        padding = torch.zeros(batch, length, dtype=DOUBLE)
        padding[:, -1] = float("-inf")
        ours = hypernet(x, src_mask=mask, src_key_padding_mask=padding)
        parts = zip(hypernet.materialize(hypernet.population), x.tensor_split(3, 1), padding.tensor_split(3), strict=True)
        same(ours, torch.cat([module(one, src_mask=mask, src_key_padding_mask=pad) for module, one, pad in parts], 1))


@pytest.mark.parametrize("batch", [2, 4, 6, 8])
def test_states_of_recurrent_layers(batch):
    hypernet = wrapped(nn.GRU(3, 5, num_layers=2, batch_first=True), samples=2)
    x, state = numbers(batch, 4, 3), numbers(2, batch, 5)
    output, last = hypernet(x, state)
    parts = zip(x.tensor_split(2), state.tensor_split(2, 1), strict=True)
    outputs, states = zip(*alone(hypernet, parts), strict=True)
    same((output, last), (torch.cat(outputs), torch.cat(states, 1)))


def test_times_of_one_size_are_shared_and_of_the_batch_dealt():
    def velocity(layer, time, x):
        return layer(torch.cat([x, time.expand(len(x))[:, None]], 1))

    hypernet, x = wrapped(of(velocity), samples=4), numbers(8, 2)
    for time in (numbers(1), numbers(8), torch.tensor(0.5, dtype=DOUBLE)):
        parts = [
            (time if time.numel() == 1 else when, one) for when, one in split(4, numbers(8) if time.numel() == 1 else time, x)
        ]
        same(hypernet(time, x), torch.cat(alone(hypernet, parts)))


def test_prototypes_as_an_argument_whose_number_is_the_batch():
    def logits(layer, x, prototypes):
        return layer(x) @ prototypes.T

    hypernet, prototypes = wrapped(of(logits, outputs=3), samples=2), numbers(8, 3)
    for batch in (10, 8, 6):
        x = numbers(batch, 3)
        same(hypernet(x, prototypes), torch.cat(alone(hypernet, [(one, prototypes) for (one,) in split(2, x)])))
    told = wrapped(of_named(), samples=2, batch_dim={"prototypes": None})
    x = numbers(8, 3)
    same(told(x, prototypes), torch.cat(alone(told, [(one, prototypes) for (one,) in split(2, x)])))
    with pytest.raises(TypeError, match=r"deal='batch'"):  # seen first where the sizes coincide
        wrapped(of(logits, outputs=3), samples=2)(x, prototypes)


def of_named():
    class Named(nn.Linear):
        def forward(self, x, prototypes):
            return super().forward(x) @ prototypes.T

    return Named(3, 3)


# Mappings, structures, plain values


def test_mappings_are_merged_by_their_keys():
    def keyed(layer, x):
        made = {"one": layer(x), "two": 2 * layer(x), "three": (layer(x).mean(), {"a": layer(x), "b": -layer(x)})}
        return made if x[0, 0] > 0 else dict(reversed(made.items()))

    hypernet, x = wrapped(of(keyed), samples=2), numbers(8, 3)
    x[0], x[4] = 1.0, -1.0
    ours = hypernet(x)
    assert torch.equal(ours["two"], 2 * ours["one"])
    assert torch.equal(ours["three"][1]["b"], -ours["three"][1]["a"])
    same(ours["one"], torch.cat([output["one"] for output in alone(hypernet, split(2, x))]))


def test_mappings_of_different_keys_are_refused():
    def keyed(layer, x):
        return {"one": layer(x)} if x[0, 0] > 0 else {"two": layer(x)}

    hypernet, x = wrapped(of(keyed), samples=2), numbers(8, 3)
    x[0], x[4] = 1.0, -1.0
    with pytest.raises(TypeError, match="different structure"):
        hypernet(x)


@pytest.mark.parametrize(
    "count",
    [
        lambda layer, x: (layer(x), (x > 0).sum()),
        lambda layer, x: (layer(x), torch.tensor(len(x))),
        lambda layer, x: (layer(x), len(x)),
        lambda layer, x: (layer(x), {"positive": int((x > 0).sum())}),
        lambda layer, x: (layer(x), bool(x[0, 0] > 0)),
        lambda layer, x: (layer(x), "high" if x[0, 0] > 0 else "low"),
        lambda layer, x: (layer(x), (layer(x) > 0).sum(0)),
    ],
)
def test_counts_and_plain_values_of_a_part_are_refused(count):
    hypernet, x = wrapped(of(count), samples=2), numbers(9, 3)
    x[0], x[5] = 1.0, -1.0
    for _ in range(2):
        with pytest.raises(TypeError, match=r"whole numbers or plain values at output\[1\].*deal='batch'"):
            hypernet(x)


def test_what_is_no_count_passes():
    def made(layer, x):
        return layer(x), torch.tensor([7, 7]), (3, "x", None, True), layer(x) > 0, layer(x).argmax(1), float(x.mean())

    hypernet, x = wrapped(of(made), samples=3), numbers(10, 3)
    ours = hypernet(x)
    outputs = alone(hypernet, split(3, x))
    same(ours[1:3], (torch.tensor([7, 7]), (3, "x", None, True)))
    for index in (0, 3, 4):
        same(ours[index], torch.cat([output[index] for output in outputs]))
    assert ours[5] == pytest.approx(x.mean().item())


def test_sums_are_averaged_as_documented():
    """A sum over a part is no mean over the batch: it is what `deal="batch"` is for."""
    hypernet, x = wrapped(of(lambda layer, x: layer(x).square().sum()), samples=2), numbers(9, 3)
    same(hypernet(x), weighted(alone(hypernet, split(2, x)), [5, 4]))


@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_several_entries_for_each_example(execution):
    makers = {
        "blocked": lambda layer, x: torch.cat([layer(x), 2 * layer(x), -layer(x)]),
        "interleaved": lambda layer, x: torch.stack([layer(x), 2 * layer(x), -layer(x)], 1).flatten(0, 1),
        "second axis": lambda layer, x: torch.cat([layer(x), 2 * layer(x), -layer(x)]).T,
    }
    for name, maker in makers.items():
        for batch in (8, 2, 9):
            hypernet, x = wrapped(of(maker), samples=2, execution=execution), numbers(batch, 3)
            ours = hypernet(x)
            parts = torch.cat([module.layer(part) for module, (part,) in zip(
                hypernet.materialize(hypernet.population), split(2, x), strict=True)])  # fmt: skip
            if name == "interleaved":
                same(ours.unflatten(0, (batch, 3)), torch.stack([parts, 2 * parts, -parts], 1))
            else:
                same(ours if name == "blocked" else ours.T, torch.cat([parts, 2 * parts, -parts]))


@pytest.mark.parametrize(
    "similarities", [lambda layer, x: layer(x) @ layer(x).T, lambda layer, x: (layer(x), layer(x)[:, None] - layer(x)[None])]
)
def test_similarities_of_all_pairs_are_refused(similarities):
    for batch in (8, 2, 9):
        with pytest.raises(TypeError, match=r"can't be joined to one; with deal='batch'"):
            wrapped(of(similarities), samples=2)(numbers(batch, 3))


# Time first


TIME_FIRST = {
    "lstm": lambda **options: nn.LSTM(8, 5, **options),
    "gru": lambda **options: nn.GRU(8, 5, num_layers=2, **options),
    "encoder": lambda **options: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **options),
}


@pytest.mark.parametrize("shape", [(6, 9, 8), (9, 9, 8), (8, 4, 8), (2, 2, 8)])
@pytest.mark.parametrize("name", TIME_FIRST)
def test_time_first_is_refused_until_it_is_said(name, shape):
    make, x = TIME_FIRST[name], numbers(*shape)
    with pytest.raises(ValueError, match="batch_dim=1"):
        wrapped(make(), samples=2)(x)
    parts = [(one,) for one in x.tensor_split(2, 1)]
    parameter = "src" if name == "encoder" else "input"
    for said in (1, {parameter: 1}):
        hypernet = wrapped(make(), samples=2, batch_dim=said)
        ours, outputs = hypernet(x), alone(hypernet, parts)
        if name == "encoder":
            same(ours, torch.cat(outputs, 1))
        else:
            states = zip(*(_pytree.tree_leaves(state) for _, state in outputs), strict=True)
            same(ours[0], torch.cat([output for output, _ in outputs], 1))
            same(_pytree.tree_leaves(ours[1]), [torch.cat(column, 1) for column in states])
    first = wrapped(make(batch_first=True), samples=2)
    y = x.movedim(1, 0)
    result = first(y)
    expected = alone(first, split(2, y))
    same(result if name == "encoder" else result[0], torch.cat([one if name == "encoder" else one[0] for one in expected]))


@pytest.mark.parametrize("batch", [4, 5, 7])
def test_attention_takes_time_first(batch):
    x, y = numbers(5, batch, 8), numbers(4, batch, 8)
    with pytest.raises(ValueError, match="batch_dim=1"):
        wrapped(nn.MultiheadAttention(8, 2), samples=2)(x, y, y)
    for said in (1, {"query": 1, "key": 1, "value": 1}):
        hypernet = wrapped(nn.MultiheadAttention(8, 2), samples=2, batch_dim=said)
        output, weights = hypernet(x, y, y)
        outputs = alone(hypernet, zip(*(one.tensor_split(2, 1) for one in (x, y, y)), strict=True))
        same(output, torch.cat([one for one, _ in outputs], 1))
        same(weights, torch.cat([one for _, one in outputs]))


def test_a_mapping_says_where_the_batch_lies_in_each_argument():
    said = {"src": 1, "src_key_padding_mask": 0, "src_mask": None}
    hypernet = wrapped(TIME_FIRST["encoder"](), samples=3, batch_dim=said)
    x, mask, padding = numbers(8, 8, 8), numbers(8, 8), numbers(8, 8)
    ours = hypernet(x, src_mask=mask, src_key_padding_mask=padding)
    modules = hypernet.materialize(hypernet.population)
    parts = zip(modules, x.tensor_split(3, 1), padding.tensor_split(3), strict=True)
    same(ours, torch.cat([module(one, src_mask=mask, src_key_padding_mask=pad) for module, one, pad in parts], 1))


def test_packed_sequences_and_graphs_are_refused():
    packed = pack_sequence([numbers(3, 3), numbers(2, 3)])
    with pytest.raises(TypeError, match=r"PackedSequence.*deal='batch'"):
        wrapped(nn.LSTM(3, 4), samples=2)(packed)

    class Graph:
        def __init__(self):
            self.x, self.edge_index = numbers(8, 3), torch.tensor([[6, 7], [7, 6]])

    with pytest.raises(TypeError, match=r"Graph.*deal='batch'"):
        wrapped(of(lambda layer, graph: layer(graph.x)), samples=2)(Graph())

    def passed(layer, x, edges):
        message = layer(x)
        return torch.zeros_like(message).index_add(0, edges[1], message[edges[0]])

    with pytest.raises(IndexError) as caught:
        wrapped(of(passed), samples=2)(numbers(8, 3), torch.tensor([[6, 7, 0], [7, 6, 1]]))
    assert "deal='batch'" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_errors_of_the_target_say_how_it_was_dealt_out():
    hypernet = wrapped(of(lambda layer, x: layer(x).reshape(8, 4)), samples=2)
    with pytest.raises(RuntimeError, match="shape") as caught:
        hypernet(numbers(8, 3))
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "the batch of 8 is dealt out to 2 networks" in told
    assert "batch_dim" in told


# Sizes, structures, classes


@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 8, 30])
def test_batches_of_any_size(batch, execution):
    hypernet, x = wrapped(of(lambda layer, x: (layer(x), layer(x).mean())), samples=4, execution=execution), numbers(batch, 3)
    parts = split(min(4, batch), x)
    outputs = alone_of(hypernet, x, parts)
    same(outputs[0], outputs[1])


def alone_of(hypernet, x, parts):
    ours = hypernet(x)
    outputs = alone(hypernet, parts)
    sizes = [len(part) for (part,) in parts]
    return ours, (torch.cat([one for one, _ in outputs]), weighted([mean for _, mean in outputs], sizes))


@pytest.mark.parametrize("batch", [3, 4, 5, 9])
def test_batch_norm_gets_two_examples(batch):
    hypernet, x = wrapped(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), samples=4), numbers(batch, 3)
    ours = hypernet(x)
    parts = split(min(4, batch // 2), x)
    modules = [module.train() for module in hypernet.materialize(hypernet.population)]
    same(ours, torch.cat([module(part) for module, (part,) in zip(modules, parts, strict=False)]))


Pair = namedtuple("Pair", ["mean", "more"])


@dataclass
class Encoded:
    code: torch.Tensor
    loss: torch.Tensor


class ModelOutput(OrderedDict):
    """As transformers has them: keys and attributes at once."""

    def __getattr__(self, name):
        return self[name]


_pytree.register_pytree_node(
    Encoded, lambda one: ([one.code, one.loss], None), lambda values, _: Encoded(*values), serialized_type_name="tests.Encoded"
)
_pytree.register_pytree_node(
    ModelOutput, lambda one: (list(one.values()), list(one)), lambda values, keys: ModelOutput(zip(keys, values, strict=True)),
    serialized_type_name="tests.ModelOutput",
)  # fmt: skip


@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_structures_of_every_kind(execution):
    def made(layer, inputs, *, scale, more):
        h = layer(inputs["x"] * scale) + more[0][0]
        output = ModelOutput(loss=h.mean())
        output["logits"], output["hidden"] = h, (h, [h, h.T])
        return Pair(h.mean(0, keepdim=True), {"encoded": Encoded(h, h.square().mean()), "output": output})

    hypernet = wrapped(of(made), samples=3, execution=execution)
    x, more = numbers(10, 3), numbers(10, 4)
    ours = hypernet({"x": x}, scale=2.0, more=((more,), "text"))
    parts = split(3, x, more)
    modules = hypernet.materialize(hypernet.population)
    outputs = [module({"x": one}, scale=2.0, more=((two,), "text")) for module, (one, two) in zip(modules, parts, strict=True)]
    assert isinstance(ours, Pair) and isinstance(ours.more["encoded"], Encoded) and isinstance(ours.more["output"], ModelOutput)
    code = torch.cat([one.more["encoded"].code for one in outputs])
    sizes = [4, 3, 3]
    same(ours.mean, weighted([one.mean for one in outputs], sizes))
    same(ours.more["encoded"].loss, weighted([one.more["encoded"].loss for one in outputs], sizes))
    same(ours.more["output"].loss, weighted([one.more["output"].loss for one in outputs], sizes))
    same([ours.more["encoded"].code, ours.more["output"].logits], [code, code])
    same(ours.more["output"].hidden, (code, [code, code.T]))


def test_caches_are_refused_with_the_remedy():
    class DynamicCache:
        def __init__(self, keys):
            self.keys = keys

    hypernet = wrapped(of(lambda layer, x: {"logits": layer(x), "past": DynamicCache(layer(x))}), samples=2)
    with pytest.raises(TypeError, match=r"DynamicCache at output\['past'\].*use_cache=False"):
        hypernet(numbers(8, 3))
    with pytest.raises(TypeError, match="use_cache=False"):
        hypernet.eval()(numbers(8, 3))


def test_complex_outputs():
    hypernet, x = wrapped(of(lambda layer, x: torch.fft.fft(layer(x))), samples=3), numbers(10, 3)
    same(hypernet(x), torch.cat(alone(hypernet, split(3, x))))
    hypernet.eval()
    modules = hypernet.materialize(hypernet.member_population())
    same(hypernet(x), torch.stack([module(x) for module in modules]).mean(0))


def test_methods_are_dealt_out_too():
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(3, 8)

        def encode(self, x):
            return self.encoder(x), self.encoder.weight.sum(1)

        def forward(self, x):
            return self.encode(x)[0]

    hypernet = wrapped(Auto())
    with hypernet.step():
        for batch in (64, 56, 9):
            x = numbers(batch, 3)
            ours = hypernet.encode(x)
            modules = hypernet.materialize(hypernet.population)
            outputs = [module.encode(part) for module, (part,) in zip(modules, split(8, x), strict=True)]
            sizes = [len(part) for (part,) in split(8, x)]
            same(ours, (torch.cat([one for one, _ in outputs]), weighted([one for _, one in outputs], sizes)))


def test_a_part_is_what_one_network_alone_runs_on():
    hypernet, x = wrapped(of(lambda layer, x: layer(x)), samples=3), numbers(10, 3)
    ours = hypernet(x)
    networks = hypernet.population.networks
    rows = [
        hypernet.executor.single(networks, Arguments((part,), {}), "forward", index)
        for index, (part,) in enumerate(split(3, x))
    ]
    same(ours, torch.cat(rows))


def test_trials_leave_no_trace():
    """Deciding how a call is dealt out runs the target aside: random numbers, buffers and hooks see nothing of it."""
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    hypernet, calls, x = wrapped(target, samples=2, execution="loop"), [], numbers(8, 3)
    hypernet.target[0].register_forward_hook(lambda *_: calls.append(1))
    results = []
    with hypernet.step():
        hypernet.training_population()
        for _ in range(2):  # the first decides
            torch.manual_seed(3)
            results.append((hypernet(x), torch.rand(1)))
    same(*results)
    assert len(calls) == 4


class Captioned(nn.Module):
    """Every image has its text; each network must get the texts of its images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, texts, kind="short"):
        lengths = torch.tensor([[float(len(text))] for text in texts], dtype=x.dtype)
        return self.layer(x) * lengths


@pytest.mark.parametrize("by_name", [False, True])
def test_a_list_of_texts_is_dealt_with_the_tensors(by_name):
    torch.manual_seed(0)
    hypernet = Hypernet(Captioned().double(), samples=3, gauge="none").train()
    for count in (7, 6, 3):
        x, texts = torch.randn(count, 3, dtype=torch.float64), ["a" * (index + 1) for index in range(count)]
        with hypernet.step():
            outputs = hypernet(x, texts=texts) if by_name else hypernet(x, texts)
            networks = hypernet.executor.materialize_all(hypernet.population.weights, {})
        places = torch.tensor_split(torch.arange(count), 3)
        expected = [network(x[at], [texts[index] for index in at]) for network, at in zip(networks, places, strict=True)]
        assert torch.allclose(outputs, torch.cat(expected), atol=1e-12)


def test_an_object_that_can_not_be_looked_into_is_named():
    @dataclass
    class Result:
        logits: torch.Tensor

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return Result(self.layer(x))

    with pytest.raises(TypeError, match="the target returns Result, whose tensors can't be joined; return tensors"):
        Hypernet(Wrapped(), samples=2).train()(torch.randn(8, 3))


@pytest.mark.parametrize("count", [16, 10])
def test_tuples_of_examples_are_refused(count):
    class Unbound(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x).unbind(0)

    with pytest.raises(TypeError, match="structure"):
        Hypernet(Unbound(), samples=4).train()(torch.randn(count, 3))
