"""Inspection: what a hypernetwork of a model would be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.cli.problems import CommandError
from lightning_hypernet.cli.progress import stage, track
from lightning_hypernet.cli.sources import add_model, model_of
from lightning_hypernet.cli.tables import size, table
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.plugins import Plugins, plugins_with

_OPTIMIZER = 4
"""A weight, its gradient and two moments of Adam."""


def arguments(parser: Any) -> None:
    """The arguments of the command."""
    add_model(parser, "model", "A name of timm's, as resnet18, or package.module:callable_or_class.")
    parser.add_argument("--target", type=str, help="Path of the target within the model, as model or net.backbone.")
    parser.add_argument(
        "--input", type=str, metavar="SIZE",
        help="Size of one example, as 3x32x32, from which the graph is read; of a timm model it is known.",
    )  # fmt: skip
    parser.add_argument(
        "--presets", type=str, default="own",
        help="Presets of generators to size: own, which leaves out the paper's, all, none, or names with commas between.",
    )  # fmt: skip
    parser.add_argument(
        "--samples",
        type=int,
        help="Networks that a training step draws; without it one of every component: diversity losses compare more.",
    )
    parser.add_argument("--batch", type=int, help="Examples of the step that is timed to choose a backend; twice the samples.")
    parser.add_argument("--backend", type=bool, default=True, help="Whether a step is timed to choose a backend.")


def run(options: Any) -> None:
    """Print the banks, the presets' sizes and the backend."""
    plugins = plugins_with()
    presets = chosen_presets(options.presets, plugins)
    with stage("building the model"):
        model = model_of(options.model, options.init_args)
        target = _within(model, options.target)
    shape = _shape(options.input)
    torch.manual_seed(0)
    example = None if shape is None else torch.randn(2, *shape)
    with stage("reading the symmetries"):
        hypernet = Hypernet(target, example, samples=options.samples)
        text = hypernet.summary()
    print(f"{type(target).__name__}, {_numbers(target):,} parameters\n\n{text}\n")
    if presets:
        print(sizes(target, example, presets, hypernet.samples))
    if options.backend:
        print(f"\n{backend(hypernet, options.batch or 2 * hypernet.samples)}")


def chosen_presets(asked: str, plugins: Plugins) -> list[str]:
    """Names of presets that a text asks for.

    Raises:
        ValueError: If one is unknown.
    """
    if asked == "none":
        return []
    if asked in ("own", "all"):
        fields = {name: plugins.generators.find(name) for name in plugins.generators}
        return [name for name, preset in fields.items() if asked == "all" or preset.get("start") != "paper"]
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        plugins.generators.find(name)
    return names


def sizes(target: nn.Module, example: Tensor | None, presets: Sequence[str], samples: int) -> str:
    """A table of what every preset of generators costs for a target.

    Args:
        target: The target.
        example: Two examples of its input; None: of a timm model they are known.
        presets: Names of presets.
        samples: Networks of a training step.
    """
    rows = [("preset", "parameters", "of the target", "in training", "in use")]
    misfits = []
    for name in track(presets, "sizing the presets"):
        try:
            hypernet = Hypernet(target, example, samples=samples, generator=name, gauge="none")
        except ValueError as error:
            misfits.append(f"{name} does not fit: {' '.join(str(error).split())}")
            continue
        own, plain = _numbers(hypernet.generator), hypernet.banks.weights
        bytes_each = next(iter(target.parameters())).element_size()
        training, use = bytes_each * (_OPTIMIZER * own + 2 * samples * plain), bytes_each * (own + samples * plain)
        rows.append((name, f"{own:,}", f"{own / plain:.2f}", size(training), size(use)))
        del hypernet
    networks = f"{samples} networks" if samples > 1 else "one network"
    about = (
        f"in training: the generator with its gradient and Adam's two moments, and {networks} with gradients; in use: the "
        f"generator and {networks}; activations come on top"
    )
    return "\n".join([table(rows), about, *misfits])


def backend(hypernet: Hypernet, batch: int) -> str:
    """Which backend a training step would take, measured.

    Args:
        hypernet: The Hypernet, with example inputs.
        batch: Examples of the step.
    """
    examples = hypernet.symmetries.examples
    if examples is None:
        return "no backend was chosen: give the size of an example by --input, as --input 3x32x32"
    repeated = examples.map(lambda one: one.repeat_interleave(-(-batch // len(one)), 0)[:batch] if one.ndim else one)
    args, kwargs = repeated.of(0)
    training = hypernet.training
    with stage("timing the backends"):
        hypernet.train()(*args, **kwargs)
    hypernet.train(training)
    return "\n".join(hypernet.executor.choices.summary()) or "loop, since no other backend runs this target"


def _within(model: nn.Module, path: str | None) -> nn.Module:
    if path is None:
        return model
    with suppress(AttributeError):
        return model.get_submodule(path)
    there = ", ".join(name for name, _ in model.named_children()) or "none"
    raise CommandError(f"{type(model).__name__} has no module {path!r}; it has {there}")


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[\[(]?\s*\d+(\s*[x,]\s*\d+)*\s*[\])]?", text):
        raise CommandError(f"--input must be the size of one example, as 3x32x32, not {text!r}")
    return tuple(int(one) for one in re.findall(r"\d+", text))


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
