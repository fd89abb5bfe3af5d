"""Entropy: ours, forward and backward, against the textbook's."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lightning_hypernet.diversity.entropy import entropy as estimate
from outcome import Outcome
from timing import DEVICE, FULL, QUICK, Step, interleaved, medians, peak_memory, ratio

BASELINE = "all distances"
LATENT = 64


def textbook(vectors: Tensor, dimension: int, p: int) -> Tensor:
    """The same estimate from the matrix of all distances."""
    apart = torch.cdist(vectors, vectors, p)
    apart = apart.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), math.inf)
    nearest = apart.min(1).values
    return dimension * (nearest + 1e-8).log().mean() + torch.digamma(torch.tensor(float(len(vectors))))


def both_ways(function: Callable[[Tensor, int, int], Tensor], vectors: Tensor, p: int) -> Step:
    """Forward and backward."""

    def step() -> None:
        function(vectors, LATENT, p).backward()
        vectors.grad = None

    return step


def entropy(quick: bool) -> Iterator[Outcome]:
    """Time, and memory beside the vectors, in units of them."""
    for count, size in ((4, 100), (8, 200)) if quick else ((32, 20_000), (128, 460_000), (512, 20_000)):
        for p in (1, 2):
            torch.manual_seed(0)
            vectors = torch.randn(count, size, device=DEVICE, requires_grad=True)
            functions = {BASELINE: textbook, "ours": estimate}
            for function in functions.values():
                torch.testing.assert_close(function(vectors, LATENT, p), estimate(vectors, LATENT, p), rtol=1e-3, atol=1e-2)
            compared = {name: both_ways(function, vectors, p) for name, function in functions.items()}
            seconds = interleaved(compared, QUICK if quick else replace(FULL, warmup=1, least=3))
            memory = {
                name: peak_memory(lambda step=step: step) / vectors.numel() / vectors.itemsize
                for name, step in compared.items()
            }
            lines = [
                [name, f"{1e3 * medians(seconds)[name]['median']:,.1f}", str(ratio(some, seconds[BASELINE])),
                 f"{memory[name]:.2f}"]
                for name, some in seconds.items()
            ]  # fmt: skip
            title = f"entropy: {count} vectors of {size:,} numbers, p = {p}"
            columns = ["system", "ms", "ratio", "memory in units of the vectors"]
            yield Outcome(title, columns, lines, {"seconds": medians(seconds), "memory": memory})
