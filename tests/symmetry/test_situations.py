"""What stands in the way of a symmetry: frozen norm layers, constants, branches that training alone takes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.symmetry.examination import examine, holds


class Frozen(nn.Module):
    """Norm layers of which some stay in evaluation mode, by a `train` of its own."""

    def __init__(self, *frozen):
        super().__init__()
        self.frozen = frozen

    def train(self, mode=True):
        super().train(mode)
        for name in self.frozen:
            norm = self.get_submodule(name).eval()
            norm.running_mean.copy_(torch.linspace(-1, 1, norm.num_features))
            norm.running_var.copy_(torch.linspace(0.5, 2, norm.num_features))
        return self


class Stream(Frozen):
    """A residual stream of four blocks with norm layers."""

    def __init__(self, *frozen, norm=nn.BatchNorm2d):
        super().__init__(*frozen)
        self.stem, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(norm(4, affine=True, track_running_stats=True) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x)).relu()
        return self.last(x.mean((2, 3)))


class Rows(Frozen):
    """A frozen norm layer of rows, behind which another one trains."""

    def __init__(self):
        super().__init__("first_norm")
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        self.first_norm, self.second_norm = nn.BatchNorm1d(4), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.last(self.second_norm(self.second(self.first_norm(self.first(x)).relu())).relu())


class Plain(Frozen):
    """A frozen norm layer without scale and shift."""

    def __init__(self):
        super().__init__("norm")
        self.first, self.last, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


class Constant(nn.Module):
    """Two layers, between which a constant meets their channels."""

    def __init__(self, meet, *buffers):
        super().__init__()
        self.first, self.last, self.meet = nn.Linear(3, 4), nn.LazyLinear(2), meet
        for index, buffer in enumerate(buffers):
            self.register_buffer(f"buffer{index}", buffer)
        self(torch.zeros(2, 3))

    def forward(self, x):
        return self.last(self.meet(self.first(x).relu(), *self.buffers()))


FLOATS, MASK, ORDER = torch.tensor([0.3, -1.0, 2.0, 0.7]), torch.tensor([True, False, False, True]), torch.tensor([2, 0, 3, 1])
CONSTANTS = {
    "masked_fill_zero": (lambda h, mask: h.masked_fill(mask, 0.0), (MASK,)),
    "masked_fill_one": (lambda h, mask: h.masked_fill(mask, 1.0), (MASK,)),
    "where": (lambda h, mask, c: torch.where(mask, h, c), (MASK, FLOATS)),
    "where_of_itself": (lambda h, mask: torch.where(mask, h, 2 * h), (MASK,)),
    "where_compared": (lambda h, c: torch.where(h > c, h, 0.0), (FLOATS,)),
    "maximum": (lambda h, c: torch.maximum(h, c), (FLOATS,)),
    "gather": (lambda h, order: h.gather(1, order.expand(len(h), -1)), (ORDER,)),
    "gather_of_few": (lambda h, order: h.gather(1, order[:2].expand(len(h), -1)), (ORDER,)),
    "take_along": (lambda h, order: torch.take_along_dim(h, order[None], 1), (ORDER,)),
    "index": (lambda h, order: h[:, order], (ORDER,)),
    "index_mask": (lambda h, mask: h * mask, (MASK,)),
    "index_select": (lambda h, order: h.index_select(1, order), (ORDER,)),
    "index_twice": (lambda h, order: h[:, order % 2], (ORDER,)),
    "index_add": (lambda h, order: torch.zeros_like(h).index_add(1, order, h), (ORDER,)),
    "index_copy": (lambda h, order: torch.ones_like(h).index_copy(1, order, h), (ORDER,)),
    "index_put": (lambda h, order, c: h.index_put((torch.arange(2)[:, None], order[None, :2]), c[:2]), (ORDER, FLOATS)),
    "scatter": (lambda h, order: torch.ones_like(h).scatter(1, order.expand(len(h), -1), h), (ORDER,)),
    "scatter_add": (lambda h, order: torch.ones_like(h).scatter_add(1, order.expand(len(h), -1), h), (ORDER,)),
    "cat": (lambda h, c: torch.cat([h, c.expand_as(h)], 1), (FLOATS,)),
    "cat_before": (lambda h, c: torch.cat([c[None, :2].expand(len(h), -1), h], 1), (FLOATS,)),
    "cat_along_rows": (lambda h, c: torch.cat([h, c[None]], 0), (FLOATS,)),
    "stack": (lambda h, c: torch.stack([h, c.expand_as(h)], 1).sum(1), (FLOATS,)),
    "stack_flat": (lambda h, c: torch.stack([h, c.expand_as(h)], 1).flatten(1), (FLOATS,)),
    "product": (lambda h, c: h * c, (FLOATS,)),
    "product_expanded": (lambda h, c: h * c.expand_as(h), (FLOATS,)),
    "quotient": (lambda h, c: h / c, (FLOATS,)),
    "quotient_of": (lambda h, c: c / (h + 1), (FLOATS,)),
    "sum_viewed": (lambda h, c: h + c.view_as(c).type_as(h).expand_as(h), (FLOATS,)),
    "sum_integer": (lambda h, order: h + order.expand_as(h), (ORDER,)),
    "sum_reshaped": (lambda h, c: h + c.reshape_as(c[None]).repeat(len(h), 1), (FLOATS,)),
    "difference": (lambda h, c: c - h, (FLOATS,)),
    "lerp": (lambda h, c: torch.lerp(h, c.expand_as(h), 0.5), (FLOATS,)),
    "addcmul": (lambda h, c: torch.addcmul(c.expand_as(h), h, c.expand_as(h)), (FLOATS,)),
    "matrix": (lambda h, c: h @ torch.outer(c, c), (FLOATS,)),
    "einsum": (lambda h, c: torch.einsum("bi,i->bi", h, c), (FLOATS,)),
    "clamp": (lambda h, c: torch.clamp(h, max=c), (FLOATS,)),
    "copy": (lambda h, c: h.clone().copy_(c.expand_as(h)) + h, (FLOATS,)),
    "fill_slice": (lambda h, c: torch.cat([h[:, :2], h[:, 2:].clone().fill_(1.0)], 1), (FLOATS,)),
    "roll": (lambda h, c: h.roll(1, 1) + c, (FLOATS,)),
    "tril": (lambda h, c: torch.tril(h) + 0 * c, (FLOATS,)),
    "cumsum": (lambda h: h.cumsum(1), ()),
    "sort": (lambda h: h.sort(1).values, ()),
    "pow": (lambda h, c: h ** c.abs(), (FLOATS,)),
    "norm": (lambda h: F.normalize(h, dim=1), ()),
    "embedding": (lambda h, order: h + F.embedding(order, torch.outer(order.float(), order.float()) + 1).sum(0), (ORDER,)),
    "linear": (lambda h, c: F.linear(h, torch.outer(c, c), c), (FLOATS,)),
    "linear_bias": (lambda h, c: F.linear(h, torch.outer(c, c).to(h), c.to(h)), (FLOATS,)),
    "layer_norm": (lambda h, c: F.layer_norm(h, (4,), c, c, 1e-30), (FLOATS,)),
    "pad": (lambda h: F.pad(h, (1, 1), value=1.0), ()),
    "ones": (lambda h: torch.cat([h, h.new_ones(len(h), 1)], 1), ()),
    "ones_like": (lambda h: h + torch.ones_like(h), ()),
    "arange": (lambda h: h + torch.arange(4), ()),
    "arange_product": (lambda h: h * torch.arange(4), ()),
    "checkpointed": (lambda h, c: checkpoint(lambda one: one + c, h, use_reentrant=False), (FLOATS,)),
}

FREE = {
    "index": (4, 4),
    "index_mask": (4, 0),
    "index_select": (4, 4),
    "index_twice": (4, 2),
    "cat": (4, 4),
    "cat_before": (4, 4),
    "stack_flat": (4, 4),
    "product": (4, 0),
    "product_expanded": (4, 0),
    "quotient": (4, 0),
    "matrix": (1, 0),
    "fill_slice": (2, 2),
    "layer_norm": (1, 0),
    "ones": (4, 4),
    "arange_product": (4, 0),
}
"""How many channels may be scaled and how many permuted, of four; none elsewhere."""


class Head(nn.Module):
    """A part that gives what a second head sees in training too."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x):
        x = self.inner(x).relu()
        return x, self.head(x) if self.training else None


class Auxiliary(nn.Module):
    """Heads in nested parts, whose outputs are returned as training does: in a tuple, a dictionary, or added up."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.parts, self.last = nn.Linear(3, 4), nn.ModuleList([Head(), Head()]), nn.Linear(4, 2)
        self.kind = kind

    def forward(self, x):
        x, heads = self.first(x).relu(), []
        for part in self.parts:
            x, head = part(x)
            heads += [] if head is None else [head]
        x = self.last(x)
        if not heads:
            return x
        return {"tuple": (x, *heads), "dict": {"out": x, "aux": {"heads": heads}}, "sum": x + sum(heads)}[self.kind]


class TrainingAlone(nn.Module):
    """What training alone does to a channel."""

    def __init__(self, act):
        super().__init__()
        self.first, self.second, self.last, self.act = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2), act

    def forward(self, x):
        x = self.first(x).relu()
        if self.training:
            x = self.act(x)
        return self.last(self.second(x).relu())


ACTS = {
    "shift": (lambda x: x + 0.1, 5, 9),
    "gelu": (F.gelu, 5, 9),
    "noise": (lambda x: x + 0.1 * torch.randn_like(x), 5, 5),
    "relative_noise": (lambda x: x * (1 + 0.1 * torch.randn_like(x)), 9, 5),
    "clip": (lambda x: x.clamp(max=0.5), 5, 9),
    "mix": (lambda x: x.lerp(x.flip(0), 0.3), 5, 5),
    "cut": (lambda x: torch.cat([x[:, :2], 0 * x[:, 2:]], 1), 9, 5),
    "channel": (lambda x: torch.cat([x[:, :1] + 1, x[:, 1:]], 1), 8, 5),
    "statistics": (lambda x: (x - x.mean(0)) / (x.std(0) + 0.1), 5, 9),
    "detach": (lambda x: x.detach() + 0.5 * x, 9, 9),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name):
    report = examine(Constant(*((CONSTANTS[name][0], *CONSTANTS[name][1]))), torch.randn(5, 3))
    assert holds(report), report
    assert (report.groups.count, report.channels) == FREE.get(name, (0, 0))


@pytest.mark.parametrize(
    "frozen", [(), ("norms.0",), ("norms.3",), ("norms.0", "norms.2"), tuple(f"norms.{i}" for i in range(4))]
)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_frozen_norms_in_a_stream(frozen, norm):
    report = examine(Stream(*frozen, norm=norm), torch.randn(4, 2, 5, 5))
    assert holds(report), report
    assert (report.groups.count, report.channels) == (4 + 4 * (4 - len(frozen)), 0 if frozen else 4)


@pytest.mark.parametrize(
    ("make", "shape", "groups", "channels"), [(Rows, (4, 3), 4 + 5 + 5, 5), (Plain, (4, 2, 6, 6), 0, 0)], ids=["rows", "plain"]
)
def test_other_frozen_norms(make, shape, groups, channels):
    report = examine(make(), torch.randn(shape))
    assert holds(report), report
    assert (report.groups.count, report.channels) == (groups, channels)


@pytest.mark.parametrize("kind", ["tuple", "dict", "sum"])
def test_heads_that_training_alone_has(kind):
    report = examine(Auxiliary(kind), torch.randn(5, 3))
    assert holds(report), report
    assert (report.groups.count, report.channels) == (4, 4)  # what no head sees


@pytest.mark.parametrize("name", ACTS)
def test_what_training_alone_does(name):
    act, groups, channels = ACTS[name]
    report = examine(TrainingAlone(act), torch.randn(5, 3))
    assert holds(report), report
    assert (report.groups.count, report.channels) == (groups, channels)
