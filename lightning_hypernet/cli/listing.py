"""Listing: what is registered, and which package brought it."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from lightning_hypernet.cli.tables import table
from lightning_hypernet.markers import PROJECT
from lightning_hypernet.plugins import RESTRICT, Plugins, plugins_with
from lightning_hypernet.registry import Registry


def arguments(parser: Any) -> None:
    """The arguments of the command."""
    parser.add_argument("--json", action="store_true", help="Print all of it as JSON.")


def run(options: Any) -> None:
    """Print the packages, then the names by their kind."""
    plugins = plugins_with()
    if options.json:
        print(json.dumps({"plugins": packages(plugins), "registered": registered(plugins), "left_out": plugins.left_out}))
        return
    rows = [("plug-in", "package", "hooks")]
    rows += [(one["name"], one["package"], ", ".join(one["hooks"]) or one["error"]) for one in packages(plugins)]
    print(table(rows))
    print()
    rows = [("kind", "package", "names")]
    for kind, names in registered(plugins).items():
        for package in dict.fromkeys(names.values()):
            rows.append((kind, package, ", ".join(name for name, origin in names.items() if origin == package)))
    print(table(rows))
    if plugins.left_out:
        print(f"\n{RESTRICT} leaves out {', '.join(plugins.left_out)}")


def packages(plugins: Plugins) -> list[dict[str, Any]]:
    """Every plug-in: its name, the package and version that brought it, its hooks, and why it was left out, if it was."""
    owners = _owners()
    return [
        {
            "name": one.name,
            "package": owners.get(one.name, own()),
            "hooks": [hook.removeprefix("hypernet_register_") for hook in one.hooks],
            "error": f"failed: {one.error}" if one.error else "",
        }
        for one in plugins.listing()
    ]


def registered(plugins: Plugins) -> dict[str, dict[str, str]]:
    """For every kind the names that are registered, and the package of each."""
    owners = _owners()
    kinds: dict[str, Registry[Any]] = {
        "diversity loss": plugins.losses,
        "prior": plugins.priors,
        "condition": plugins.conditions,
        "gauge": plugins.gauges,
        "preset of generators": plugins.generators,
        "preset of the callback": plugins.presets,
        "weight distribution": plugins.distributions,
        "extractor": plugins.extractors,
        "encoder": plugins.encoders,
        "backend": plugins.backends,
    }
    found = {kind: {name: owners.get(registry.origin(name), own()) for name in registry} for kind, registry in kinds.items()}
    layers = {f"{layer.__module__}.{layer.__qualname__}": plugins.origin_of(layer) for layer in plugins.rules}
    return {**found, "layer with a filter rule": {name: owners.get(origin, own()) for name, origin in layers.items()}}


def _owners() -> dict[str, str]:
    """The package, with its version, that announced a plug-in."""
    return {one.name: f"{one.dist.name} {one.dist.version}" for one in entry_points(group=PROJECT) if one.dist}


def own() -> str:
    """This package, with its version where it is installed."""
    try:
        return f"{PROJECT} {version(PROJECT)}"
    except PackageNotFoundError:
        return PROJECT
