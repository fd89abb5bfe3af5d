"""Plug-ins: load, validate, list."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from torch import nn

from lightning_hypernet import conditions, diversity, generator, hookspecs, presets, tasks
from lightning_hypernet.conditions import Condition, read_range
from lightning_hypernet.diversity import DiversityLoss, WeightedDiversity
from lightning_hypernet.generator import Extractor, Prior, WeightDistribution
from lightning_hypernet.markers import PROJECT
from lightning_hypernet.registry import Registry, made
from lightning_hypernet.symmetry import gauge
from lightning_hypernet.target import backends, layers
from lightning_hypernet.target.backends import Backend
from lightning_hypernet.target.filters import Rule
from lightning_hypernet.tasks import Encoder
from lightning_hypernet.values import guess, read_options, real, several, unknown

RESTRICT = "LIGHTNING_HYPERNET_PLUGINS"
"""Environment variable: comma-separated glob patterns of the installed plug-ins that may load; empty means none."""

_BUILT_IN = (layers, backends, gauge, generator, tasks, diversity, conditions, presets)
_HOOKS = {
    "prior": "hypernet_register_priors",
    "generator": "hypernet_register_extractors",
    "distribution": "hypernet_register_distributions",
    "encoder": "hypernet_register_encoders",
    "gauge": "hypernet_register_gauges",
    "execution": "hypernet_register_backends",
}
"""The hooks that bring what options of a Hypernet name."""

Need = tuple[str, str, str]
"""What a Hypernet has of a plug-in: the option, ``"target"`` for a layer; the name or class chosen; the plug-in's name."""


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
            registered twice, a rule is registered for a layer that is not the plug-in's own and has one or is a base of such
            layers, or a given plug-in raises. The message names the plug-in.
    """

    def __init__(self, given: Sequence[object] = ()) -> None:
        self.losses: Registry[type[DiversityLoss]] = Registry("diversity loss", _subclass_of(DiversityLoss))
        self.conditions: Registry[type[Condition]] = Registry("condition", _subclass_of(Condition))
        self.priors: Registry[type[Prior]] = Registry("prior", _subclass_of(Prior))
        self.extractors: Registry[type[Extractor]] = Registry("extractor", _subclass_of(Extractor))
        self.distributions: Registry[type[WeightDistribution]] = Registry(
            "weight distribution", _subclass_of(WeightDistribution)
        )
        self.encoders: Registry[type[Encoder]] = Registry("encoder", _subclass_of(Encoder))
        self.gauges: Registry[Callable[..., Any]] = Registry("gauge", _callable)
        self.backends: Registry[type[Backend]] = Registry("backend", _subclass_of(Backend))
        self.generators: Registry[Mapping[str, Any]] = Registry("preset of generators", _mapping)
        self.presets: Registry[Mapping[str, Any]] = Registry("preset of the callback", _mapping)
        self.rules: dict[type[nn.Module], Rule] = {}
        self._ruled_by: dict[type[nn.Module], str] = {}
        self.failed: dict[str, str] = {}
        self.left_out: list[str] = []
        self._versions: dict[str, str] = {}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for built_in in _BUILT_IN:
            self._take(built_in, built_in.__name__)
        self._load_installed()
        for plugin in several("plugins", given, "plug-ins"):
            name = getattr(plugin, "__name__", type(plugin).__name__)
            with _named(name):
                self._take(plugin, name)

    @property
    def _registries(self) -> dict[str, Registry[Any]]:
        """The registries by the hooks that fill them."""
        return {
            "hypernet_register_diversity": self.losses,
            "hypernet_register_conditions": self.conditions,
            "hypernet_register_priors": self.priors,
            "hypernet_register_extractors": self.extractors,
            "hypernet_register_distributions": self.distributions,
            "hypernet_register_encoders": self.encoders,
            "hypernet_register_gauges": self.gauges,
            "hypernet_register_backends": self.backends,
            "hypernet_register_generators": self.generators,
            "hypernet_register_presets": self.presets,
        }

    def _load_installed(self) -> None:
        groups: dict[str, list[EntryPoint]] = {}
        for entry in _announced(_search_path()):
            groups.setdefault(entry.name, []).append(entry)
        allowed = os.environ.get(RESTRICT)
        patterns = ["*"] if allowed is None else [pattern.strip() for pattern in allowed.split(",")]
        for name, entries in groups.items():
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                self.left_out.append(name)
            else:
                self._versions[name] = entries[0].dist.version if entries[0].dist else ""
                try:
                    if len(entries) > 1:
                        raise ValueError(f"{len(entries)} installed plug-ins have this name; uninstall all but one")
                    self._take(entries[0].load(), name)
                except Exception as error:
                    self.failed[name] = " ".join(str(error).split()) or type(error).__name__
        remark = f", and {RESTRICT} leaves out {', '.join(self.left_out)}" if self.left_out else ""
        if self.failed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
            remark += f", and these installed ones failed ({reasons}); {RESTRICT} says which are loaded"
        for registry in self._registries.values():
            registry.remark = remark

    def _take(self, plugin: object, name: str) -> None:
        """Check one plug-in and call its hooks; one that fails leaves nothing behind."""
        if inspect.isclass(plugin):
            raise TypeError("it is a class; pass an instance or a module")
        if self._manager.is_registered(plugin):
            return  # installed, and given too; or announced under two names
        if self._manager.has_plugin(name):
            raise ValueError(f"there is another plug-in of this name, {name!r}; rename one")
        rules, ruled_by = dict(self.rules), dict(self._ruled_by)
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            if not self._manager.get_hookcallers(plugin):
                raise ValueError("it implements no hook; mark its functions with @hookimpl")
            self._collect(plugin, name)
        except Exception:
            self.rules, self._ruled_by = rules, ruled_by
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
        if "auto" in self.backends:
            raise ValueError("no backend may be called 'auto', which stands for the fastest of the built-in ones")
        if both:
            raise ValueError(f"{', '.join(both)} would be a preset of generators and of the callback; no name may be both")

    def _register_rule(self, layer: type[nn.Module], rule: Rule, plugin: object, name: str) -> None:
        if not (inspect.isclass(layer) and issubclass(layer, nn.Module)):
            raise TypeError(f"a filter rule is registered for a class of modules, not for {layer!r}")
        module = plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__
        own = plugin in _BUILT_IN or layer.__module__.partition(".")[0] == module.partition(".")[0]
        ruled = next((cls for cls in self.rules if issubclass(layer, cls) or (issubclass(cls, layer) and not own)), None)
        if layer in self.rules or (ruled is not None and not own):
            raise ValueError(
                f"{layer.__name__} already has a filter rule, or would take that of {ruled and ruled.__name__}; register rules "
                "for layers of the plug-in's own"
            )
        if name in self._versions and not own:
            raise ValueError(
                f"{layer.__module__}.{layer.__name__} is not the plug-in's own layer; pass such rules with plugins="
            )
        self.rules[layer] = rule
        self._ruled_by[layer] = name

    def origin_of(self, layer: type[nn.Module]) -> str:
        """The plug-in that brought the filter rule of a layer; empty if there is none."""
        return self._ruled_by.get(layer, "")

    def absence(self, plugin: str) -> str:
        """Why a plug-in is not there, and what to do about it."""
        if plugin in self.failed:
            return f"it failed: {self.failed[plugin]}"
        return f"{RESTRICT} leaves it out" if plugin in self.left_out else "install the package, or pass plugins=[...]"

    def lacking(self, needs: Iterable[Need]) -> list[str]:
        """What is not there of what a Hypernet had of plug-ins, in words."""
        layers = {_path(layer) for layer in self.rules}
        absent: dict[str, list[str]] = {}
        for option, name, plugin in needs:
            if name not in (layers if option == "target" else self._registries.get(_HOOKS.get(option, ""), ())):
                absent.setdefault(plugin, []).append(f"{option}={name!r}")
        return [f"the plug-in {plugin} for {', '.join(uses)}: {self.absence(plugin)}" for plugin, uses in absent.items()]

    def used(self, target: nn.Module, choices: Mapping[str, Any]) -> list[Need]:
        """What a Hypernet of a target has of plug-ins, those built in aside.

        Args:
            target: The target, whose layers rules may be of plug-ins.
            choices: For every option what was chosen.
        """
        ruled = {next((cls for cls in type(module).__mro__ if cls in self.rules), nn.Module) for module in target.modules()}
        needs = [("target", _path(cls), self._ruled_by[cls]) for cls in ruled & set(self.rules)]
        for option, choice in choices.items():
            while choice is not None:
                name = choice.get("name") if isinstance(choice, Mapping) else choice
                needs.append((option, str(name), self._registries[_HOOKS[option]].origin(choice)))
                choice = choice.get("base") if option == "prior" and isinstance(choice, Mapping) else None
        return sorted(need for need in needs if need[2] not in {"", *(built_in.__name__ for built_in in _BUILT_IN)})

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
        names = (diversity,) if isinstance(diversity, str) else () if diversity is None else diversity
        if not isinstance(names, (Mapping, tuple, list)):
            kind = f"an instance of {type(diversity).__name__}" if isinstance(diversity, nn.Module) else repr(diversity)
            raise TypeError(
                f"diversity must be a name, a list of names, or a mapping of names to weights or options, not {kind}; register "
                "a loss of your own with a plug-in and choose it by its name"
            )
        chosen = dict(names) if isinstance(names, Mapping) else {name: {} for name in names if isinstance(name, str)}
        twice = [name for name in names if not isinstance(name, str) or list(names).count(name) > 1]
        if twice:
            raise ValueError(
                f"diversity must name losses once each, not {twice[0]!r}; there are {', '.join(sorted(self.losses))}"
            )
        losses, weights, arguments = {}, {}, {}
        for name, options in chosen.items():
            loss = self.losses.find(name)
            given = dict(options) if isinstance(options, Mapping) else {"weight": options}
            try:
                weights[name] = real(f"the weight of the diversity loss {name!r}", given.pop("weight", loss.default_weight), 0)
            except ValueError as error:
                raise TypeError(str(error)) from None
            taken = inspect.signature(loss).parameters
            free = any(one.kind is one.VAR_KEYWORD for one in taken.values())
            wrong = "" if free else unknown(f"the diversity loss {name!r}", given, [*taken, "weight"])
            if wrong:
                raise TypeError(wrong)
            arguments[name] = given = read_options(loss, given)
            losses[name] = made("diversity loss", name, loss, **given)
        return WeightedDiversity(losses, weights, arguments)

    def build_conditions(self, chosen: Mapping[str, Condition | Mapping[str, Any]] | None) -> dict[str, Condition]:
        """Build the chosen conditions.

        Args:
            chosen: For every name a condition; or a mapping with the ``name`` of one, its ``range`` and options.

        Raises:
            ValueError: If a name is unknown, or a range is none.
            TypeError: If the options do not fit the condition.
        """
        if chosen is not None and not (isinstance(chosen, Mapping) and chosen):
            raise TypeError(f"conditions must be a mapping of names to conditions, not {chosen!r}")
        built = {}
        for key, one in (chosen or {}).items():
            if isinstance(one, Condition):
                built[key] = one
                continue
            make, options = self.conditions.chosen(one)
            if "range" not in options:
                raise TypeError(f"the condition {key!r} has no range: give it one, as {{'log_uniform': [1e-4, 1]}}")
            options["range"] = read_range(key, options["range"])
            built[key] = made("condition", key, make, **options)
        return built

    def backend(self, execution: str | Mapping[str, Any]) -> Backend | None:
        """The backend of a name, or of a mapping with its ``name`` and options; None for ``"auto"``."""
        if execution == "auto":
            return None
        if isinstance(execution, Mapping) and execution.get("name") == "auto":
            raise TypeError(f"the backend 'auto' takes no options, and {', '.join(set(execution) - {'name'})} came with it")
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


def plugins_with(given: Sequence[object] = ()) -> Plugins:
    """The built-in, installed and given plug-ins; those of nobody's own are found once for all, and not to be changed."""
    if isinstance(given, Sequence) and not given:
        return _installed(_search_path(), os.environ.get(RESTRICT))
    return Plugins(given)


@functools.lru_cache(maxsize=4)
def _installed(path: tuple[tuple[str, float], ...], allowed: str | None) -> Plugins:
    return Plugins()


def _search_path() -> tuple[tuple[str, float], ...]:
    """Where packages are found, and when something was last installed there."""
    folders = [path for path in sys.path if os.path.isdir(path)]
    return tuple((path, os.stat(path).st_mtime) for path in folders)


@functools.lru_cache(maxsize=4)
def _announced(_: tuple[tuple[str, float], ...]) -> tuple[EntryPoint, ...]:
    """The entry points of installed plug-ins, which take longer to find than all else of a small Hypernet to build."""
    return tuple(entry_points(group=PROJECT))


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _subclass_of(base: type) -> Callable[[Any], str]:
    def check(thing: Any) -> str:
        fits = inspect.isclass(thing) and issubclass(thing, base) and not inspect.isabstract(thing)
        return "" if fits else f"a subclass of {base.__name__} with all its methods"

    return check


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
        hooks = [name for name in vars(hookspecs) if name.startswith("hypernet_")]
        odd = re.match(r"unknown hook '(\w+)'", str(error))
        detail = f"{odd[0]}{guess(odd[1], hooks)}" if odd else " ".join(str(error).split())
        there = f" (the hooks are {', '.join(hooks)})" if "hook" in detail else ""
        raise PluginError(f"the plug-in {plugin!r} failed: {detail}{there}") from error
