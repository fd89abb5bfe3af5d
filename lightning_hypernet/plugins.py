"""Plug-ins: load, validate, list."""

from __future__ import annotations

import fnmatch
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from torch import nn

from lightning_hypernet import diversity, generator, hookspecs, presets
from lightning_hypernet.diversity import DiversityLoss, WeightedDiversity
from lightning_hypernet.generator import Extractor, Prior, WeightDistribution
from lightning_hypernet.markers import PROJECT
from lightning_hypernet.registry import Registry, made
from lightning_hypernet.symmetry import gauge
from lightning_hypernet.target import backends, layers
from lightning_hypernet.target.backends import Backend
from lightning_hypernet.target.filters import Rule

RESTRICT = "LIGHTNING_HYPERNET_PLUGINS"
"""Environment variable: comma-separated glob patterns of the installed plug-ins that may load; empty means none."""

_BUILT_IN = (layers, backends, gauge, generator, diversity, presets)


class PluginError(ValueError):
    """A plug-in that does not fit, or that raised; the message names it."""


@dataclass(frozen=True)
class PluginInfo:
    """A plug-in as the listing shows it.

    Args:
        name: Its name.
        version: The version of its package.
        hooks: The hooks that it implements.
        error: Why it was left out; empty if it was not.
    """

    name: str
    version: str
    hooks: tuple[str, ...]
    error: str = ""


class Plugins:
    """The built-in, installed and given plug-ins, validated.

    What is installed announces itself under the entry-point group ``lightning_hypernet``. To install a plug-in changes nobody's
    training: what it brings is chosen by name, and its filter rules serve its own layers. An installed plug-in that fails is
    left out, of which the listing tells, and whoever asks for a name that is not there.

    Args:
        given: Further plug-ins: modules or instances with functions that carry ``@hookimpl``.

    Raises:
        PluginError: If a class is given in place of an instance, a hook is unknown or has a wrong signature, a name is
            registered twice, a rule is registered for a layer that is not the plug-in's own and has one, or a given plug-in
            raises. The message names the plug-in.
    """

    def __init__(self, given: Sequence[object] = ()) -> None:
        self.losses: Registry[type[DiversityLoss]] = Registry("diversity loss", _subclass_of(DiversityLoss))
        self.priors: Registry[type[Prior]] = Registry("prior", _subclass_of(Prior))
        self.extractors: Registry[type[Extractor]] = Registry("extractor", _subclass_of(Extractor))
        self.distributions: Registry[type[WeightDistribution]] = Registry(
            "weight distribution", _subclass_of(WeightDistribution)
        )
        self.gauges: Registry[Callable[..., Any]] = Registry("gauge", _callable)
        self.backends: Registry[type[Backend]] = Registry("backend", _subclass_of(Backend))
        self.generators: Registry[Mapping[str, Any]] = Registry("preset of generators", _mapping)
        self.presets: Registry[Mapping[str, Any]] = Registry("preset of the callback", _mapping)
        self.rules: dict[type[nn.Module], Rule] = {}
        self._ruled_by: dict[type[nn.Module], str] = {}
        self.failed: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for built_in in _BUILT_IN:
            self._take(built_in, built_in.__name__)
        self._load_installed()
        for plugin in given:
            name = getattr(plugin, "__name__", type(plugin).__name__)
            with _named(name):
                self._take(plugin, name)

    @property
    def _registries(self) -> dict[str, Registry[Any]]:
        """The registries by the hooks that fill them."""
        return {
            "hypernet_register_diversity": self.losses,
            "hypernet_register_priors": self.priors,
            "hypernet_register_extractors": self.extractors,
            "hypernet_register_distributions": self.distributions,
            "hypernet_register_gauges": self.gauges,
            "hypernet_register_backends": self.backends,
            "hypernet_register_generators": self.generators,
            "hypernet_register_presets": self.presets,
        }

    def _load_installed(self) -> None:
        groups: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=PROJECT):
            groups.setdefault(entry.name, []).append(entry)
        allowed = os.environ.get(RESTRICT)
        patterns = ["*"] if allowed is None else [pattern.strip() for pattern in allowed.split(",")]
        for name, entries in groups.items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                self._versions[name] = entries[0].dist.version if entries[0].dist else ""
                try:
                    if len(entries) > 1:
                        raise ValueError(f"{len(entries)} installed plug-ins have this name; uninstall all but one")
                    self._take(entries[0].load(), name)
                except Exception as error:
                    self.failed[name] = " ".join(str(error).split()) or type(error).__name__
        if self.failed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
            for registry in self._registries.values():
                registry.remark = f", and these installed ones failed ({reasons}); {RESTRICT} says which are loaded"

    def _take(self, plugin: object, name: str) -> None:
        """Check one plug-in and call its hooks; one that fails leaves nothing behind."""
        if inspect.isclass(plugin):
            raise TypeError("it is a class; pass an instance or a module")
        rules = dict(self.rules)
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            if not self._manager.get_hookcallers(plugin):
                raise ValueError("it implements no hook; mark its functions with @hookimpl")
            self._collect(plugin, name)
        except Exception:
            self.rules = rules
            for registry in self._registries.values():
                registry.remove(name)
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise

    def _collect(self, plugin: object, name: str) -> None:
        others = [other for _, other in self._manager.list_name_plugin() if other is not plugin]

        def call(hook: str, register: Callable[..., None]) -> None:
            self._manager.subset_hook_caller(hook, others)(register=register)

        for hook, registry in self._registries.items():
            call(hook, lambda key, thing, registry=registry: registry.add(key, thing, name))
        call("hypernet_register_filters", lambda layer, rule: self._register_rule(layer, rule, plugin, name))
        both = sorted(set(self.generators) & set(self.presets))
        if both:
            raise ValueError(f"{', '.join(both)} would be a preset of generators and of the callback; no name may be both")

    def _register_rule(self, layer: type[nn.Module], rule: Rule, plugin: object, name: str) -> None:
        if not (inspect.isclass(layer) and issubclass(layer, nn.Module)):
            raise TypeError(f"a filter rule is registered for a class of modules, not for {layer!r}")
        module = plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__
        own = plugin in _BUILT_IN or layer.__module__.partition(".")[0] == module.partition(".")[0]
        ruled = next((cls for cls in layer.__mro__ if cls in self.rules), None)
        if ruled is layer or (ruled is not None and not own):
            raise ValueError(
                f"{layer.__name__} already has a filter rule, that of {ruled.__name__}; register rules for layers of the "
                "plug-in's own"
            )
        self.rules[layer] = rule
        self._ruled_by[layer] = name

    def missing(self, names: Iterable[str]) -> list[str]:
        """Which of these plug-ins are not there."""
        present = {name for name, _ in self._manager.list_name_plugin()}
        return [name for name in names if name not in present]

    def used(self, target: nn.Module, choices: Mapping[str, Any]) -> list[str]:
        """The plug-ins, those built in aside, that a Hypernet of a target needs.

        Args:
            target: The target, whose layers rules may be of plug-ins.
            choices: For every hook's name what was chosen of what it registers.
        """
        ruled = [cls for module in target.modules() for cls in type(module).__mro__ if cls in self._ruled_by]
        origins = {self._registries[hook].origin(choice) for hook, choice in choices.items()}
        origins |= {self._ruled_by[cls] for cls in ruled}
        return sorted(origins - {built_in.__name__ for built_in in _BUILT_IN} - {""})

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
            loss = self.losses.find(name)
            given = dict(options) if isinstance(options, Mapping) else {"weight": options}
            weight = given.pop("weight", loss.default_weight)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise TypeError(f"the weight of the diversity loss {name!r} must be a number, not {weight!r}")
            weights[name], arguments[name] = float(weight), given
            losses[name] = made("diversity loss", name, loss, **given)
        return WeightedDiversity(losses, weights, arguments)

    def backend(self, execution: str | Mapping[str, Any]) -> Backend | None:
        """The backend of a name, or of a mapping with its ``name`` and options; None for ``"auto"``."""
        if execution == "auto":
            return None
        make, options = self.backends.chosen(execution)
        backend: Backend = made("backend", execution, make, **options)
        return backend

    def listing(self) -> list[PluginInfo]:
        """Every plug-in, in the order of their names; those that were left out too."""
        found = [PluginInfo(name, self._versions.get(name, ""), (), reason) for name, reason in self.failed.items()]
        for name, plugin in self._manager.list_name_plugin():
            hooks = tuple(caller.name for caller in self._manager.get_hookcallers(plugin) or ())
            found.append(PluginInfo(name, self._versions.get(name, ""), hooks))
        return sorted(found, key=lambda info: info.name)


def _subclass_of(base: type) -> Callable[[Any], str]:
    return lambda thing: "" if inspect.isclass(thing) and issubclass(thing, base) else f"a subclass of {base.__name__}"


def _callable(thing: Any) -> str:
    return "" if callable(thing) else "a function of the symmetries and of options"


def _mapping(thing: Any) -> str:
    return "" if isinstance(thing, Mapping) else "a mapping of options"


@contextmanager
def _named(plugin: str) -> Iterator[None]:
    """Name the plug-in in whatever goes wrong with it."""
    try:
        yield
    except Exception as error:
        hooks = ", ".join(name for name in vars(hookspecs) if name.startswith("hypernet_"))
        detail = " ".join(str(error).split())
        raise PluginError(f"the plug-in {plugin!r} failed: {detail} (the hooks are {hooks})") from error
