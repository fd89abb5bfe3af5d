"""Changes: what is done to the modules of a target themselves, whose parameters are generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hypernet.target.copies import HOOKS
from lightning_hypernet.target.places import filled
from lightning_hypernet.target.replicas import Replicas, version_of
from lightning_hypernet.target.state import State

_MOVES = (
    "to", "cuda", "cpu", "xpu", "ipu", "mtia", "type", "float", "double", "half", "bfloat16", "to_empty", "share_memory",
    "_apply",
)  # fmt: skip
_ADDITIONS = ("register_parameter", "register_buffer", "register_module", "add_module")
_EDITS = ("append", "extend", "insert", "pop", "popitem", "clear", "update", "setdefault")
_REMEDIES = {
    **dict.fromkeys(_MOVES, "are generated, with the type and device of the whole: call hypernet.{name}(...)"),
    **dict.fromkeys(
        ("parameters", "named_parameters", "requires_grad_"),
        "are generated: train or freeze hypernet.parameters(), or keep these as they are with {exclude}",
    ),
    "zero_grad": "are generated, and their gradients those of the generator: call hypernet.zero_grad()",
    "state_dict": "are those of every network: take hypernet.state_dict(), or one of hypernet.materialize(hypernet.sample(n))",
    "load_state_dict": "are generated: load them before the target is wrapped, or keep these as they are with {exclude}",
    **dict.fromkeys(
        ("modules", "named_modules"),
        "are generated, and its modules are those of every network: set modes by {part}.apply(function), freeze "
        "hypernet.requires_grad_(False), run children(), or keep these as they are with {exclude}",
    ),
    **dict.fromkeys(
        (*_ADDITIONS, *_EDITS),
        "are generated: call {name} before the target is wrapped, or keep these as they are with {exclude}",
    ),
}
READ = ("buffers", "named_buffers", "get_buffer", "train", "eval")
"""Methods of modules that read what all networks share, or set the modes that they follow."""


def is_change(owner: nn.Module, name: str) -> bool:
    """Whether a method is torch's own, and changes a module or gives away what to change."""
    method = getattr(type(owner), name, None)
    return name in _REMEDIES and (name not in _EDITS or getattr(method, "__module__", "").startswith("torch.nn."))


def refused(name: str, path: str) -> AttributeError:
    """The error of such a method of a part that holds generated parameters.

    Args:
        name: The method.
        path: The path of the part; empty for the target.
    """
    remedy = _REMEDIES[name].format(name=name, part=f"hypernet.{path}", exclude=f"exclude={[f'{path}.*' if path else '*']}")
    return AttributeError(f"{name} of {path!r} was asked for, but the parameters of {path!r} {remedy}")


def apply(function: Callable[[nn.Module], Any], part: nn.Module, replicas: Replicas, shapes: Mapping[str, Any]) -> None:
    """Call a function with every module of a part of the target, as ``nn.Module.apply`` does.

    In the places of generated parameters it meets stand-ins, to see that it leaves them alone.

    Args:
        function: The function, which may set modes and attributes, and change parameters that are not generated.
        part: The target or a part of it.
        replicas: The target's replicas, which follow.
        shapes: The shape of every generated parameter.

    Raises:
        RuntimeError: If the function changes a generated parameter; what else it did to the modules is taken back.
    """
    template = replicas.template
    state, made = State(template), [(module, type(module), _hooks(module)) for module in template.modules()]
    holders = {place.module: template.get_submodule(place.module) for place in replicas.places}
    stand_ins = _stand_ins(template, {place.parameter: shapes[place.parameter] for place in replicas.places})
    before = {name: (one.detach().clone(), version_of(one)) for name, one in stand_ins.items()}
    with filled(template, replicas.places, stand_ins) as missing:
        nn.Module.apply(part, function)
        moved = {path for path, module in holders.items() if _submodule(template, path) is not module}
        replaced = [*missing(), *(place.parameter for place in replicas.places if place.module in moved)]
    frozen = [name for name, one in stand_ins.items() if not one.requires_grad]
    written = [name for name, one in stand_ins.items() if _differs(one, *before[name])]
    for names, what, remedy in (
        (frozen, "freezes", "freeze it before the target is wrapped, or all with hypernet.requires_grad_(False)"),
        ([*replaced, *written], "changes", "apply it before the target is wrapped"),
    ):
        if names:
            state.restore()
            for module, cls, hooks in made:
                module.__class__ = cls
                for own, kept in hooks:
                    own.clear()
                    own.update(kept)
            raise RuntimeError(
                f"the function given to apply {what} the generated parameter {names[0]!r} of {type(template).__name__}, which "
                f"every network has from the generator: {remedy}, or keep the parameter as it is with exclude={names[:1]}"
            )


def _hooks(module: nn.Module) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """The dictionaries of hooks of a module, and what they hold."""
    own = (vars(module)[name] for name in HOOKS if name in vars(module))
    return [(one, dict(one)) for one in own if isinstance(one, dict)]


def _stand_ins(template: nn.Module, shapes: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Parameters of numbers that no initialization gives; the global random numbers stay as they are."""
    own = (one for some in (template.parameters(), template.buffers()) for one in some if one.is_floating_point())
    like = next(own, torch.zeros(()))
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        return {
            name: nn.Parameter((1e3 * torch.randn(shape, generator=random)).to(like.device, like.dtype))
            for name, shape in shapes.items()
        }


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _differs(now: Tensor, before: Tensor, version: int) -> bool:
    """Whether a tensor was written to, through ``.data`` too."""
    if version_of(now) != version or (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
        return True
    return not torch.equal(now.detach(), before)
