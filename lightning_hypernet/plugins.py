"""Plug-ins: load, validate, list."""

from __future__ import annotations

import fnmatch
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import pluggy
from torch import nn

from lightning_hypernet import diversity, hookspecs
from lightning_hypernet.diversity import DiversityLoss, WeightedDiversity
from lightning_hypernet.markers import PROJECT
from lightning_hypernet.target import layers
from lightning_hypernet.target.filters import Rule

RESTRICT = "LIGHTNING_HYPERNET_PLUGINS"
"""Environment variable: comma-separated glob patterns of the installed plug-ins that may load; empty means none."""


class PluginError(ValueError):
    """A plug-in that does not fit, or that raised; the message names it."""


@dataclass(frozen=True)
class PluginInfo:
    """A plug-in as the listing shows it: its name, the version of its package, and the hooks it implements."""

    name: str
    version: str
    hooks: tuple[str, ...]


class Plugins:
    """The built-in, installed and given plug-ins, validated.

    What is installed announces itself under the entry-point group ``lightning_hypernet``. To install a plug-in changes nobody's
    training: its losses are chosen by name, its filter rules serve its own layers.

    Args:
        given: Further plug-ins: modules or instances with functions that carry ``@hookimpl``.

    Raises:
        PluginError: If a class is given in place of an instance, a hook is unknown or has a wrong signature, a name is
            registered twice, or a plug-in raises. The message names the plug-in.
    """

    def __init__(self, given: Sequence[object] = ()) -> None:
        self.losses: dict[str, type[DiversityLoss]] = {}
        self.rules: dict[type[nn.Module], Rule] = {}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for built_in in (diversity, layers):
            self._manager.register(built_in, built_in.__name__)
        self._load_installed()
        for plugin in given:
            name = getattr(plugin, "__name__", type(plugin).__name__)
            with _named(name):
                self._manager.register(plugin, name)
                self._manager.check_pending()
        for name, registered in self._manager.list_name_plugin():
            with _named(name):
                self._collect(registered)

    def _load_installed(self) -> None:
        names = [entry.name for entry in entry_points(group=PROJECT)]
        allowed = os.environ.get(RESTRICT)
        patterns = ["*"] if allowed is None else [pattern.strip() for pattern in allowed.split(",")]
        for name in names:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                with _named(name):
                    self._manager.load_setuptools_entrypoints(PROJECT, name)
                    self._manager.check_pending()

    def _collect(self, plugin: object) -> None:
        """Check one plug-in and call its hooks."""
        if inspect.isclass(plugin):
            raise TypeError("it is a class; pass an instance or a module")
        if not self._manager.get_hookcallers(plugin):
            raise ValueError("it implements no hook; mark its functions with @hookimpl")
        others = [other for _, other in self._manager.list_name_plugin() if other is not plugin]
        self._manager.subset_hook_caller("hypernet_register_diversity", others)(register=self._register_loss)
        self._manager.subset_hook_caller("hypernet_register_filters", others)(register=self._register_rule)

    def _register_loss(self, name: str, loss: type[DiversityLoss]) -> None:
        if not (inspect.isclass(loss) and issubclass(loss, DiversityLoss)):
            raise TypeError(f"{name!r} must be registered with a subclass of DiversityLoss, not {loss!r}")
        if name in self.losses:
            raise ValueError(f"{name!r} is already the name of {self.losses[name].__name__}; choose another name")
        self.losses[name] = loss

    def _register_rule(self, layer: type[nn.Module], rule: Rule) -> None:
        if not (inspect.isclass(layer) and issubclass(layer, nn.Module)):
            raise TypeError(f"a filter rule is registered for a class of modules, not for {layer!r}")
        if layer in self.rules:
            raise ValueError(f"{layer.__name__} already has a filter rule")
        self.rules[layer] = rule

    def build_diversity(
        self, diversity: str | Sequence[str] | Mapping[str, float | Mapping[str, Any]] | None
    ) -> WeightedDiversity:
        """Build the chosen losses.

        Args:
            diversity: A name or several; or for every name its weight, or a mapping of its arguments with its ``weight``.

        Returns:
            Their weighted sum; empty for None.

        Raises:
            ValueError: If a name is unknown.
            TypeError: If the arguments do not fit the loss.
        """
        names = (diversity,) if isinstance(diversity, str) else diversity or ()
        chosen = dict(names) if isinstance(names, Mapping) else {name: {} for name in names}
        losses, weights, arguments = {}, {}, {}
        for name, options in chosen.items():
            if name not in self.losses:
                raise ValueError(f"unknown diversity loss {name!r}; there are {', '.join(sorted(self.losses))}")
            given = dict(options) if isinstance(options, Mapping) else {"weight": options}
            weight = given.pop("weight", self.losses[name].default_weight)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise TypeError(f"the weight of the diversity loss {name!r} must be a number, not {weight!r}")
            weights[name], arguments[name] = float(weight), given
            try:
                losses[name] = self.losses[name](**given)
            except TypeError as error:
                raise TypeError(f"the diversity loss {name!r} does not take these arguments: {error}") from error
        return WeightedDiversity(losses, weights, arguments)

    def listing(self) -> list[PluginInfo]:
        """Every loaded plug-in, in the order of their names."""
        versions = {id(plugin): info.version for plugin, info in self._manager.list_plugin_distinfo()}
        found = []
        for name, plugin in self._manager.list_name_plugin():
            hooks = tuple(caller.name for caller in self._manager.get_hookcallers(plugin) or ())
            found.append(PluginInfo(name, versions.get(id(plugin), ""), hooks))
        return sorted(found, key=lambda info: info.name)


@contextmanager
def _named(plugin: str) -> Iterator[None]:
    """Name the plug-in in whatever goes wrong with it."""
    try:
        yield
    except Exception as error:
        hooks = ", ".join(name for name in vars(hookspecs) if name.startswith("hypernet_"))
        detail = " ".join(str(error).split())
        raise PluginError(f"the plug-in {plugin!r} failed: {detail} (the hooks are {hooks})") from error
