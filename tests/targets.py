"""Twenty kinds of module, each with inputs, on which the contracts of the package are tested."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

BATCH = 12


class Tied(nn.Module):
    """Decoder and encoder share one weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(8, 5, bias=False)
        self.decoder = nn.Linear(5, 8)
        self.back = nn.Linear(8, 5, bias=False)
        self.back.weight = self.encoder.weight

    def forward(self, x):
        return self.back(self.decoder(self.encoder(x).relu()))


class Tokens(nn.Module):
    """Class token, position table, attention and a scale: the bare parameters of a transformer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8) * 0.02)
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        return self.head(self.block(x)[:, 0]) * self.temperature


class Attention(nn.Module):
    """Attention whose key and value have sizes of their own, so that the projections are separate parameters."""

    def __init__(self, **sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, **sizes)
        self.key = nn.Linear(8, sizes.get("kdim", 8))
        self.value = nn.Linear(8, sizes.get("vdim", 8))

    def forward(self, x):
        return self.attention(x, self.key(x), self.value(x), need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.head = nn.LazyLinear(3)
        self.head(self.rnn(torch.zeros(1, 2, 4))[0])

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Structured(nn.Module):
    """A dict and keyword arguments in, a nested structure out."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 3)
        self.right = nn.Bilinear(3, 4, 2)

    def forward(self, inputs, scale=1.0):
        left = self.left(inputs["a"])
        return {"left": left * scale, "pair": (self.right(left, inputs["b"]), None)}


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.inner = nn.Sequential(nn.Linear(6, 12), nn.RMSNorm(12), nn.GELU(), nn.Linear(12, 6))

    def forward(self, x):
        return x + self.inner(self.norm(x))


class OddLayer(nn.Module):
    """A layer that no rule knows."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3, 2))

    def forward(self, x):
        return torch.einsum("bi,ijk->bjk", x, self.table)


def images(*shape: int) -> Callable[[], tuple]:
    return lambda: (torch.randn(BATCH, *shape, dtype=torch.float64),)


def structured() -> tuple:
    batch = {name: torch.randn(BATCH, 4, dtype=torch.float64) for name in "ab"}
    return (batch, torch.tensor(2.0, dtype=torch.float64))


@dataclass(frozen=True)
class Kind:
    """A module, its inputs, and whether vmap can run it, in evaluation and in training."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    vmap: bool = True
    vmap_training: bool = True


KINDS = {
    "mlp": Kind(lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), images(6)),
    "conv1d": Kind(lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)), images(2, 8)),
    "conv2d_batchnorm": Kind(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3)
        ),
        images(1, 8, 8),
    ),
    "conv3d": Kind(lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.InstanceNorm3d(3, affine=True)), images(1, 3, 3, 3)),
    "grouped_conv": Kind(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.GroupNorm(2, 8)), images(4, 5, 5)),
    "transposed_conv": Kind(
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2)),
        images(4, 3, 3),
    ),
    "embedding": Kind(
        lambda: nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(24, 3)),
        lambda: (torch.randint(0, 11, (BATCH, 4)),),
    ),
    "attention_packed": Kind(Attention, images(5, 8)),
    "attention_separate": Kind(lambda: Attention(kdim=6, vdim=7), images(5, 8)),
    "lstm": Kind(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, proj_size=2), images(5, 4), vmap=False),
    "gru": Kind(lambda: Recurrent(nn.GRU), images(5, 4), vmap=False),
    "rnn": Kind(lambda: Recurrent(nn.RNN, bias=False), images(5, 4), vmap=False),
    "pre_norm": Kind(PreNorm, images(6)),
    "tied": Kind(Tied, images(8)),
    "weight_norm": Kind(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2)), images(6)
    ),
    "orthogonal": Kind(lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 5)), nn.Linear(5, 2)), images(5)),
    "spectral_norm": Kind(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        images(2, 6, 6),
        vmap_training=False,
    ),
    "tokens": Kind(Tokens, images(4, 8)),
    "structured": Kind(Structured, structured),
    "odd_layer": Kind(OddLayer, images(4)),
}


def leaves(tree: object) -> list[Tensor]:
    """The tensors of a pytree."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
