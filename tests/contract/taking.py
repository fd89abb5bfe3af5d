"""Targets by what they are given and what they return."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree

from tests.contract.agreement import What
from tests.contract.parts import BATCH, Function, normal, numbers
from tests.target.test_dealing import Detector


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


Heads = namedtuple("Heads", ["logits", "value"])


@dataclass
class Record:
    """A dataclass that torch knows nothing of."""

    x: Tensor
    scale: float = 1.0


@dataclass
class Known:
    """A dataclass that is registered with torch."""

    x: Tensor
    y: Tensor


_pytree.register_pytree_node(Known, lambda one: ([one.x, one.y], None), lambda values, _: Known(*values))


class Output(OrderedDict):
    """A mapping whose entries are attributes too."""

    def __getattr__(self, name):
        return self[name]


_pytree.register_pytree_node(
    Output, lambda one: (list(one.values()), list(one)), lambda values, keys: Output(zip(keys, values, strict=True))
)


class Masked(nn.Module):
    """Attention with a mask of the length, a padding mask and a causal mask as a buffer."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)
        self.register_buffer("causal", torch.triu(torch.ones(5, 5, dtype=torch.bool), 1))
        self.register_buffer("order", torch.tensor([3, 0, 4, 1, 2]), persistent=False)

    def forward(self, x, padding=None, weights=False):
        x = x[:, self.order]
        y, found = self.attention(x, x, x, key_padding_mask=padding, attn_mask=self.causal, need_weights=weights)
        return {"out": self.head(y), "weights": found}


class Decoder(nn.Module):
    """Queries that attend to a memory of another length, with kwargs of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, target, memory, *, causal=True):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype) if causal else None
        return self.layer(target, memory, tgt_mask=mask, tgt_is_causal=causal)


class Experts(nn.Module):
    """Tokens go to the two best of four experts; the load of each is returned beside."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 3) for _ in range(4))

    def forward(self, x):
        odds = self.router(x).softmax(-1)
        best, index = odds.topk(2, dim=-1)
        out = x.new_zeros(*x.shape[:-1], 3)
        for number, expert in enumerate(self.experts):
            rows, place = (index == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(x[rows]) * best[rows, place, None])
        return out, odds.mean(0), (odds.mean(0).square()).sum()


class AuxiliaryHead(nn.Module):
    """Another head in training, None in evaluation."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x), self.other(x) if self.training else None


class Recurrence(nn.Module):
    """Time first, with the states that come and go."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4)

    def forward(self, x, state=None):
        out, (h, c) = self.rnn(x, state)
        return out, h, c


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, labels=None, return_loss=True, name="plain"):
        logits = self.layer(x)
        if not return_loss:
            return Output(logits=logits)
        return Output(loss=F.cross_entropy(logits, labels), logits=logits, rate=0.5, name=name)


def each(call, count):
    """Lists of images are cut as such."""
    (images,) = call
    cuts = [len(one) for one in torch.arange(len(images)).tensor_split(count)]
    ends = torch.tensor(cuts).cumsum(0).tolist()
    return [(images[end - cut : end],) for cut, end in zip(cuts, ends, strict=True)]


def linear(function, inputs=3, outputs=4):
    """A linear layer, and a function of it and the arguments."""
    return lambda: Function(function, layer=nn.Linear(inputs, outputs))


def pair(*shapes):
    return lambda: tuple(normal(BATCH, *shape) for shape in shapes)


def padded():
    mask = torch.zeros(BATCH, 5, dtype=torch.bool)
    mask[:, 3:] = torch.rand(BATCH, 2) > 0.5
    return {"x": normal(BATCH, 5, 4), "padding": mask, "weights": True}


def decoded():
    return {"target": normal(BATCH, 3, 4), "memory": normal(BATCH, 5, 4), "causal": True}


def losses():
    return {"x": normal(BATCH, 3), "labels": torch.randint(0, 4, (BATCH,)), "name": "by name"}


def two_scales(net, x):
    y = net.layer(x)
    return [y, y[:, ::2], {"deep": [y.sum(1), (y.mean(), None)]}]


def siamese(net, one, other, weight=None):
    first, second = net.layer(one), net.layer(other)
    return F.cosine_similarity(first, second) if weight is None else (first - second).abs() * weight


def of_rows(net, x):
    return net.layer(x).flatten(0, 1)


def spectrum(net, x):
    return torch.fft.rfft(net.layer(x))


def labels(net, x):
    y = net.layer(x)
    return y, y.argmax(1), y > 0


VECTORS = numbers(3)
TAKING = {
    "keyword_arguments": What(Masked, padded),
    "an_optional_mask": What(Masked, numbers(5, 4)),
    "decoder": What(Decoder, decoded),
    "dictionary_in": What(
        linear(lambda net, batch: net.layer(batch["x"]) + batch["y"]), lambda: ({"x": normal(BATCH, 3), "y": normal(BATCH, 1)},)
    ),
    "named_tuple": What(
        linear(lambda net, pair: Heads(net.layer(pair.left) + pair.right, net.layer(pair.left).mean(1))),
        lambda: (Pair(normal(BATCH, 3), normal(BATCH, 4)),),
    ),
    "dataclass_registered": What(
        linear(lambda net, pair: Known(net.layer(pair.x), pair.y * 2)), lambda: (Known(normal(BATCH, 3), normal(BATCH, 2)),)
    ),
    "dataclass_in": What(
        linear(lambda net, record: net.layer(record.x) * record.scale),
        lambda: (Record(normal(BATCH, 3)),),
        refuses={"training": "there is no batch to deal out"},
    ),
    "dataclass_out": What(
        linear(lambda net, x: Record(net.layer(x))),
        VECTORS,
        refuses={"training": "returns Record, whose tensors can't be joined"},
    ),
    "loss_inside": What(Loss, losses),
    "nested_outputs": What(linear(two_scales), VECTORS),
    "siamese": What(linear(siamese), pair((3,), (3,))),
    "three_inputs": What(linear(siamese), pair((3,), (3,), (1,))),
    "experts": What(Experts, numbers(4)),
    "auxiliary_head": What(AuxiliaryHead, VECTORS),
    "time_first": What(Recurrence, lambda: (normal(6, BATCH, 3),), options={"batch_dim": 1}),
    "time_first_untold": What(Recurrence, lambda: (normal(6, BATCH, 3),), refuses={"training": "takes time first"}),
    "encoder_time_first": What(
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0), lambda: (normal(5, BATCH, 4),), options={"batch_dim": 1}
    ),
    "packed_sequence": What(
        lambda: nn.GRU(3, 4),
        lambda: (pack_sequence([normal(size, 3) for size in (5, 4, 3, 2)]),),
        refuses={"training": r"no batch to deal out in the arguments \(PackedSequence\)"},
    ),
    "list_of_images": What(Detector, lambda: ([normal(3, 5 + index % 3, 6) for index in range(BATCH)],), parts=each),
    "flattened_batch": What(linear(of_rows), numbers(5, 3)),
    "complex_outputs": What(linear(spectrum), VECTORS),
    "labels_and_flags": What(linear(labels), VECTORS),
    "a_mean": What(linear(lambda net, x: net.layer(x).square().mean()), VECTORS),
    "a_count": What(
        linear(lambda net, x: (net.layer(x), (x > 0).sum())),
        VECTORS,
        refuses={"training": r"whole numbers or plain values at output\[1\]"},
    ),
    "a_distribution": What(
        linear(lambda net, x: torch.distributions.Normal(net.layer(x), 1.0)),
        VECTORS,
        refuses={"training": "returns Normal, whose tensors can't be joined"},
    ),
    "prototypes_out": What(linear(lambda net, x: (net.layer(x), net.layer.weight * 2)), VECTORS),
    "a_time_of_size_one": What(
        linear(lambda net, time, x: net.layer(x) * time),
        lambda: (normal(1), normal(BATCH, 3)),
        parts=lambda call, count: [(call[0], one) for one in call[1].tensor_split(count)],
    ),
    "plain_arguments": What(
        linear(lambda net, x, mode, power: net.layer(x) ** power if mode == "power" else None),
        lambda: (normal(BATCH, 3), "power", 2),
    ),
    "indices": What(
        lambda: nn.Sequential(nn.EmbeddingBag(9, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 2)),
        lambda: (torch.randint(0, 9, (BATCH, 5)),),
    ),
    "padding_row": What(
        lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 2)),
        lambda: (torch.randint(0, 9, (BATCH, 3)),),
    ),
}
