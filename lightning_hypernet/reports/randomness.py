"""Randomness: random numbers that training draws, left as they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from lightning_hypernet.hypernet import Hypernet


@contextmanager
def undrawn(hypernet: Hypernet, loader: Any = None) -> Iterator[None]:
    """Within, anything may be drawn; training goes on as if nothing had been.

    That is true of the Hypernet's latents, of torch on the CPU and on GPUs, of Python and NumPy, and of generators that a
    loader and its samplers have of their own.

    Args:
        hypernet: The Hypernet.
        loader: What gives batches; None: nothing does.
    """
    draws, cpu, python, arrays = hypernet.prior.draws, torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    own = [(generator, generator.get_state()) for generator in _generators(loader)]
    try:
        yield
    finally:
        hypernet.prior.draws = draws
        torch.set_rng_state(cpu)
        random.setstate(python)
        numpy.random.set_state(arrays)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        for generator, state in own:
            generator.set_state(state)


def _generators(loader: Any) -> list[torch.Generator]:
    loader = getattr(loader, "loader", loader)  # which others go around
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
