"""Checkpoints: what a Hypernet was built with, written and read in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_hypernet.generator import GeneratorConfig

FORMAT = 1
_KEY = "hypernet"
_COMPARED = ("latent_dim", "components", "samples", "members", "prior", "generator", "gauge", "execution", "reduce")


def config_of(generator: GeneratorConfig | Mapping[str, Any] | None) -> GeneratorConfig:
    """The configuration that an argument stands for."""
    return GeneratorConfig(**generator) if isinstance(generator, Mapping) else generator or GeneratorConfig()


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a Hypernet in plain values, as checkpoints and YAML hold them."""
    plain = dict(options)
    for name, unnamed in (("prior", None), ("gauge", "none")):
        if name in plain and not isinstance(plain[name], str):
            plain[name] = unnamed
    if "generator" in plain:
        plain["generator"] = dataclasses.asdict(config_of(plain["generator"]))
    if dataclasses.is_dataclass(plain.get("structure")):
        plain["structure"] = dataclasses.asdict(plain["structure"])
    return {name: _plain(value) for name, value in plain.items()}


def differences(built: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Which arguments that are asked for are others than those built with, in words; patterns and inputs aside."""
    wanted = recorded({name: asked[name] for name in _COMPARED if name in asked})
    return [f"{name}={built[name]!r}, not {value!r}" for name, value in wanted.items() if value != built[name]]


def write(checkpoint: dict[str, Any], target: str, prefix: str, options: Mapping[str, Any]) -> None:
    """Store the recipe of a Hypernet in a Lightning checkpoint.

    Args:
        checkpoint: The checkpoint.
        target: Path of the target in the LightningModule.
        prefix: What the names of the Hypernet's tensors begin with.
        options: What it was built with.
    """
    checkpoint.setdefault(_KEY, {})[target] = {"format": FORMAT, "prefix": prefix, "options": dict(options)}


def read(path: str | Path, name: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a Hypernet's recipe and tensors from a Lightning checkpoint.

    Args:
        path: The checkpoint; read with ``weights_only=True``.
        name: The callback's `target`, if there were several.

    Returns:
        The options, and the state dict without diversity losses.

    Raises:
        ValueError: If the checkpoint holds no such Hypernet or has an unknown format, or its prior was a distribution object.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    recipes = checkpoint.get(_KEY, {})
    name = next(iter(recipes), None) if name is None else name
    if name not in recipes:
        raise ValueError(
            f"{path} holds no Hypernet for the target {name!r}; it has {list(recipes)} (save_weights_only=True leaves them out)"
        )
    recipe = recipes[name]
    if recipe.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {recipe.get('format')!r}, not {FORMAT}; read it with the version that wrote it"
        )
    if recipe["options"]["prior"] is None:
        raise ValueError(f"the prior in {path} was a distribution object; build the Hypernet and load its state dict")
    prefix = recipe["prefix"]
    state = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix) and not key.startswith(f"{prefix}diversity.")
    }
    return recipe["options"], state


def _plain(value: Any) -> Any:
    """Lists in place of tuples, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value
