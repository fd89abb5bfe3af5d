"""Shards: tensors of which every rank holds a part."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`, whose numbers lie on several ranks."""
    return hasattr(tensor, "to_local")


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without a copy: its shard, or all of a tensor that is none."""
    part: Any = tensor.detach() if is_sharded(tensor) else tensor
    return part.to_local() if is_sharded(tensor) else tensor


def gathered(value: Any) -> Any:
    """A tensor with the shards of all ranks, which must all come here; whatever else it is, as it is."""
    together: Any = value
    return together.full_tensor() if isinstance(value, Tensor) and is_sharded(value) else value


def is_left_out(state: Any) -> bool:
    """Whether it is what torch puts in place of a module's extra state when parameters are loaded into shards one by one."""
    return type(state).__name__ == "_EXTRA_STATE"


def keep_extra_states(module: nn.Module) -> None:
    """Let every module keep its extra state where one is left out of what is loaded."""
    for one in module.modules():
        one.register_load_state_dict_pre_hook(_drop)


def _drop(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if is_left_out(state.get(f"{prefix}_extra_state")):
        del state[f"{prefix}_extra_state"]


def refuse_sharded(module: nn.Module, path: str) -> None:
    """The weights of a target are generated, and a rank needs them whole.

    Args:
        module: The target.
        path: Its path.

    Raises:
        ValueError: If parameters or buffers of it are sharded.
    """
    names = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if is_sharded(value)]
    if names:
        raise ValueError(
            f"{', '.join(names[:3])} of the target {path!r} are sharded already: leave the target out of fully_shard, the "
            "callback shards the generator of its weights in configure_model"
        )
