"""Peers: other packages' hypernetworks, each behind one function."""

import importlib.util
import math
from collections.abc import Callable, Mapping

import torch
from torch import Size, Tensor, nn

from timing import DEVICE

LATENT, HIDDEN = 64, 100
"""Numbers in z, as ours by default; width of the hidden layers, their default in hypnettorch."""
LIMIT = 128_000_000
"""Weights of a generator at most: before a large target its last hidden layer is narrower, which is faster."""

Shapes = Mapping[str, Size]
Draw = Callable[[int], dict[str, Tensor]]
"""Draws so many networks: ``{name: (networks, *shape)}``."""


def _layers(shapes: Shapes) -> list[int]:
    numbers = sum(shape.numel() for shape in shapes.values())
    return [HIDDEN, max(1, min(HIDDEN, LIMIT // numbers))]


def _split(vectors: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    parts = vectors.split([shape.numel() for shape in shapes.values()], dim=1)
    return {name: part.view(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _options(shapes: Shapes) -> dict[str, object]:
    """Of both hypernetworks of hypnettorch: z is an unconditional input, and there are no conditions."""
    listed = [list(shape) for shape in shapes.values()]
    return {"target_shapes": listed, "uncond_in_size": LATENT, "cond_in_size": 0, "num_cond_embs": 0, "verbose": False}


def hypnettorch_hmlp(shapes: Shapes) -> tuple[nn.Module, Draw]:
    """A fully connected hypernetwork."""
    from hypnettorch.hnets import HMLP

    module = HMLP(**_options(shapes), layers=_layers(shapes)).to(DEVICE)
    return module, lambda n: _split(module(torch.randn(n, LATENT, device=DEVICE), ret_format="flattened"), shapes)


def hypnettorch_chunked(shapes: Shapes) -> tuple[nn.Module, Draw]:
    """A fully connected hypernetwork of chunks: at least ten, of a thousand weights at most."""
    from hypnettorch.hnets import ChunkedHMLP

    chunk = min(1000, math.ceil(sum(shape.numel() for shape in shapes.values()) / 10))
    module = ChunkedHMLP(**_options(shapes), layers=[HIDDEN, HIDDEN], chunk_size=chunk).to(DEVICE)
    return module, lambda n: _split(module(torch.randn(n, LATENT, device=DEVICE), ret_format="flattened"), shapes)


def hyperlight(shapes: Shapes) -> tuple[nn.Module, Draw]:
    """A fully connected hypernetwork with one more output for every weight; z lies in [0, 1], as its encoding wants."""
    from hyperlight import HyperNet

    module = HyperNet({"z": (LATENT,)}, {name: tuple(shape) for name, shape in shapes.items()}, _layers(shapes)).to(DEVICE)
    return module, lambda n: module(z=torch.rand(n, LATENT, device=DEVICE))


PEERS = {"hypnettorch HMLP": hypnettorch_hmlp, "hypnettorch Chunked": hypnettorch_chunked, "hyperlight": hyperlight}
_told: set[str] = set()


def peers(target: nn.Module) -> dict[str, tuple[nn.Module, Draw]]:
    """The hypernetworks that can be had for a target, by name; of the others one line is printed each.

    Args:
        target: Has the parameters that they generate.
    """
    shapes = {name: parameter.shape for name, parameter in target.named_parameters()}
    made = {}
    for name, make in PEERS.items():
        package = name.split()[0]
        if importlib.util.find_spec(package) is None:
            if package not in _told:
                print(f"{package} is left out, since it is not installed")
            _told.add(package)
            continue
        try:
            torch.manual_seed(0)
            module, draw = make(shapes)
            draw(2)
        except Exception as error:
            print(f"{name} is left out, since it fails: {error}")
        else:
            made[name] = module, draw
    return made
