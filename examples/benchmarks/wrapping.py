"""Wrapping: what it takes to make a Hypernet of a model, and how large its generators are."""

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import nn

from lightning_hypernet import Hypernet
from lightning_hypernet.plugins import plugins_with
from outcome import Outcome
from timing import weights

MODELS = (
    "resnet18",
    "resnet50",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "efficientnet_b0",
    "densenet121",
    "mobilenetv3_small_100",
    "regnetx_002",
    "mixer_s32_224",
    "swin_tiny_patch4_window7_224",
)
SMALL = ("test_resnet", "test_vit")
GENERATORS = ("default", "compact", "adapter")
LIMIT = 120.0
"""Processor seconds after which one reading is given up."""


class LimitError(BaseException):
    """A reading took too long; nothing that catches exceptions on the way shall catch it."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `LimitError` in what takes more processor time than it may."""

    def stop(*_: Any) -> None:
        raise LimitError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def reading(action: Callable[[], Any]) -> tuple[float | None, Any]:
    """Processor seconds and result of an action; None if the limit was reached."""
    gc.collect()
    begin = time.process_time()
    try:
        with limited():
            result = action()
    except LimitError:
        return None, None
    return time.process_time() - begin, result


def examine(target: nn.Module, generators: list[str]) -> dict[str, Any]:
    """Seconds, counts of symmetries and sizes of generators, of one target."""
    torch.manual_seed(0)
    found: dict[str, Any] = {"weights": weights(target)}
    found["wrap"], hypernet = reading(lambda: Hypernet(target))
    if hypernet is None:
        return found
    found["scale"], groups = reading(lambda: hypernet.symmetries.groups)
    found["groups"] = groups and groups.count
    found["order"], blocks = reading(lambda: hypernet.symmetries.blocks) if groups else (None, None)
    found["blocks"] = None if blocks is None else len(blocks)
    structure = hypernet.options["structure"]
    for generator in generators:
        other = hypernet if generator == "default" else Hypernet(target, generator=generator, structure=structure)
        found[generator] = weights(other.generator) / found["weights"]
    return found


def wrapping(quick: bool) -> Iterator[Outcome]:
    """Every model is wrapped once, in its own size of input."""
    generators = [name for name in GENERATORS if name in plugins_with().generators]
    numbers, lines = {}, []
    for name in SMALL if quick else MODELS:
        found = numbers[name] = examine(timm.create_model(name), generators)
        seconds = ["over the limit" if found.get(what) is None else f"{found[what]:.1f}" for what in ("wrap", "scale", "order")]
        lines.append(
            [name, f"{found['weights']:,}", *seconds, *(str(found.get(what)) for what in ("groups", "blocks")),
             *(f"{found[generator]:.3f}" if generator in found else "-" for generator in generators)]
        )  # fmt: skip
        print(f"{name} is wrapped", flush=True)
    columns = ["model", "weights", "wrap, s", "scale, s", "order, s", "channels scaled", "blocks permuted"]
    title = f"wrapping, processor seconds of each step up to {LIMIT:.0f}; weights of the generators in units of the target's"
    yield Outcome(title, [*columns, *generators], lines, numbers)
