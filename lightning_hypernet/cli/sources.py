"""Sources: what a command names, as a model, a checkpoint or data, and how it is had."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_hypernet import bundle, folder
from lightning_hypernet.archive import read_checkpoint
from lightning_hypernet.cli.problems import CommandError
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.hub import from_pretrained
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.values import guess

_BATCH = 256
_KEPT = (bundle.PAIR.recipe, folder.PAIR.recipe)
"""What a folder has that holds a Hypernet or an ensemble."""
SPLITS = ("train", "val", "test")


def add_source(parser: Any) -> None:
    """Give a parser the arguments that name a checkpoint or a folder, and how its target is built."""
    parser.add_argument("source", metavar="CHECKPOINT", help="A checkpoint of Lightning, or a folder of save_pretrained.")
    parser.add_argument(
        "--config", type=str, metavar="YAML",
        help="The YAML file of fit, from which the model and the data are built; it imports what it names.",
    )  # fmt: skip
    add_model(parser, "--model", "Instead of a YAML file: what builds the target, or the LightningModule around it: a name of "
              "timm's, or package.module:callable_or_class.")  # fmt: skip
    parser.add_argument("--target", type=str, help="Which target, if several were trained: the callback's target.")
    parser.add_argument(
        "--trust", action="store_true", help="Build what a folder's own recipe names, whatever it is: for your own alone."
    )


def add_model(parser: Any, name: str, text: str) -> None:
    """Give a parser the arguments that name a model, and what it is built with."""
    parser.add_argument(name, type=str, help=text)
    parser.add_argument(
        "--init_args", type=dict[str, Any], metavar="JSON",
        help='What it is built with, as in --init_args \'{"num_classes": 10}\' or --init_args.num_classes 10.',
    )  # fmt: skip


def add_data(parser: Any, split: str | None) -> None:
    """Give a parser the arguments that name data."""
    parser.add_argument(
        "--data", type=str, metavar="PATH",
        help="package.module:thing, what gives the data in place of the YAML file: a LightningDataModule, a data set, a "
        "loader, or a function that makes one.",
    )  # fmt: skip
    if split is not None:
        parser.add_argument("--split", choices=SPLITS, default=split, help="Which part of the data module.")


def imported(path: str) -> Any:
    """What an import path names.

    Args:
        path: ``package.module:name``, or with a dot in place of the colon.

    Raises:
        CommandError: If there is no such module or it holds no such thing.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        near = guess(error.name, _beside(error.name), likeness=0.8)
        raise CommandError(
            f"there is no module {error.name!r} to import {path} from: run the command where it lies, or install it{near}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(f"{module} holds no {part!r}{guess(part, vars(found))}")
        found = getattr(found, part)
    return found


def _beside(module: str) -> list[str]:
    """The modules that can be imported from where one that is not there would be."""
    parent = module.rpartition(".")[0]
    inner = getattr(sys.modules.get(parent), "__path__", []) if parent else None
    return [f"{parent}.{one.name}" if parent else one.name for one in pkgutil.iter_modules(inner)]


def model_of(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model: timm's of a name, without weights to fetch, or what an import path names.

    Raises:
        CommandError: If the name is neither, or what it names gives no module.
    """
    given = dict(arguments or {})
    if ":" in name or "." in name:
        try:
            made = imported(name)
        except CommandError:
            if ":" in name or not is_timm(name):
                raise
        else:
            made = made(**given) if callable(made) and not isinstance(made, nn.Module) else made
            if not isinstance(made, nn.Module):
                raise CommandError(f"{name} gives a {type(made).__name__}, and a model is a module of torch")
            return made
    import timm

    if not is_timm(name):
        near = guess(name, timm.list_models())
        raise CommandError(f"timm has no model {name!r}{near or ';'} a model of your own is named as package.module:Class")
    made_by_timm: nn.Module = timm.create_model(name, **given)
    return made_by_timm


def is_timm(name: str) -> bool:
    """Whether a name is that of a model of timm's."""
    import timm

    return bool(timm.is_model(name.partition(".")[0])) and ":" not in name


class Source:
    """A checkpoint or a folder, with what of a YAML file goes with it.

    Args:
        options: Those of `add_source`, and of `add_data` if there are some.

    Attributes:
        part: Where in the model that was named the target is, as ``.model``; empty: it is the model.
        targets: What the callbacks of the YAML file call their targets.
    """

    def __init__(self, options: Any) -> None:
        self.options, self.path = options, Path(options.source)
        self.module: Any = None
        self.part = ""
        self.targets: list[str] = []
        self.data: Any = None
        if not self.path.exists():
            raise CommandError(f"there is no file or folder {self.path}")
        if options.config is not None:
            self.module, self.data, self.targets = _configured(options.config)
        if options.get("data") is not None:
            made = imported(options.data)
            self.data = made() if callable(made) and not isinstance(made, (Dataset, DataLoader)) else made

    def network(self) -> Hypernet | Ensemble:
        """The Hypernet or Ensemble, in evaluation mode.

        Raises:
            CommandError: If it is not clear what the target is built by.
        """
        if not self.path.is_dir():
            built, name = self._target()
            return Hypernet.from_checkpoint(self.path, built, name=name, trust=self.options.trust)
        named = self.options.model is not None or self.module is not None
        target = self._target()[0] if named else None
        if not any((self.path / file).is_file() for file in _KEPT):
            raise CommandError(self._nothing_kept())
        try:
            return from_pretrained(self.path, target=target, trust=self.options.trust)
        except ValueError as error:
            if "target=" in str(error):  # what builds it is told by options here
                trusted = ", or --trust" if "trust=" in str(error) else ""
                raise CommandError(f"{error}; here by --model, the YAML file of fit by --config{trusted}") from error
            if target is None or not hasattr(target, "training_step") or type(target).__name__ not in str(error):
                raise
            parts = " or ".join(f"--target {name}" for name, _ in target.named_children())
            raise CommandError(f"{error}; if it is of a part of {type(target).__name__}, name that by {parts}") from error

    def _nothing_kept(self) -> str:
        """What to say of a folder that holds neither a Hypernet nor an ensemble."""
        if (self.path / "members.json").is_file():
            return (
                f"{self.path} holds plain networks that sample wrote, for use without a hypernetwork as its README.md says: "
                "name what they were drawn from, which members.json tells"
            )
        return f"{self.path} is no folder that save_pretrained or save() wrote: there is no {' or '.join(_KEPT)} in it"

    def _target(self) -> tuple[nn.Module, str | None]:
        """The target, and what its callback calls it."""
        name = self.options.target
        if self.path.is_dir() and name is None and self.options.model is None and len(self.targets) == 1:
            name = self.targets[0]
        if not self.path.is_dir() and name is None:
            kept = read_checkpoint(self.path).get("hypernet")
            name = next((one for one in kept if isinstance(one, str)), None) if isinstance(kept, dict) else None
        if self.options.model is not None:
            model = model_of(self.options.model, self.options.init_args)
        elif self.module is not None:
            model = self.module
        else:
            near = [path / "config.yaml" for path in self.path.resolve().parents[:2] if (path / "config.yaml").is_file()]
            beside = f"; if {near[0]} is yours, it is this one" if near else ""
            raise CommandError(
                f"{self.path.name} keeps weights, not what they are the weights of: name it by --model, or the YAML file of "
                f"fit by --config{beside}"
            )
        if name in (None, ".") or not hasattr(model, "training_step"):
            return model, name
        try:
            found, self.part = model.get_submodule(name), f".{name}"
            return found, name
        except AttributeError as error:
            raise CommandError(f"{type(model).__name__} has no {name!r}, the target of {self.path.name}") from error

    def loader(self, split: str) -> Iterable[Any]:
        """The batches of a part of the data.

        Raises:
            CommandError: If there is no data, or several loaders.
        """
        loader = self.any_loader(split)
        if loader is None:
            raise CommandError(
                f"there is no data for {split}: name a data module or a loader by --data, or a YAML file by --config"
            )
        return loader

    def any_loader(self, split: str) -> Iterable[Any] | None:
        """The batches of a part of the data; None if there are none."""
        data = self.data if self.data is not None else self.module
        method = getattr(data, f"{split}_dataloader", None)
        if method is not None:
            if self.data is not None:
                data.prepare_data()
                data.setup({"train": "fit", "val": "validate"}.get(split, split))
            try:
                data = method()
            except Exception as error:
                if type(error).__name__ == "MisconfigurationException":
                    return None
                raise
        elif self.data is None or (split == "train" and self.options.get("split") is not None):
            return None  # what is evaluated on is nobody's training data
        if isinstance(data, (list, tuple)) and data and all(isinstance(one, DataLoader) for one in data):
            if len(data) > 1:
                raise CommandError(f"there are {len(data)} loaders for {split}, and one is read: name it by --data")
            data = data[0]
        loader: Iterable[Any] = DataLoader(data, _BATCH) if isinstance(data, Dataset) else data
        return loader


def _configured(path: str) -> tuple[Any, Any, list[str]]:
    """The LightningModule of a YAML file, its data module, if it has one, and the targets of its callbacks."""
    import pytorch_lightning as pl
    import yaml
    from jsonargparse import ArgumentParser

    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CommandError(f"{path} is no YAML: {error}") from error
    found = {key: content[key] for key in ("model", "data") if isinstance(content, dict) and content.get(key)}
    if "model" not in found:
        raise CommandError(f"{path} names no model, as the YAML file of fit does")
    modules, sources = [pl.LightningModule], [pl.LightningDataModule]
    if other := sys.modules.get("lightning.pytorch"):
        modules.append(other.LightningModule)
        sources.append(other.LightningDataModule)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(tuple(modules), "model")
    parser.add_subclass_arguments(tuple(sources), "data", required=False)
    made = parser.instantiate_classes(parser.parse_object(found))
    return made.model, made.get("data"), list(_targets(content))


def _targets(content: Mapping[str, Any]) -> Iterator[str]:
    """The targets of the callbacks in a YAML file of fit."""
    from lightning_hypernet.callback import HypernetCallback

    trainer = content.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    for one in callbacks if isinstance(callbacks, list) else [callbacks]:
        given = one if isinstance(one, dict) else {"class_path": one}
        if str(given.get("class_path")).rpartition(".")[2] == HypernetCallback.__name__:
            arguments = given.get("init_args") or {}
            yield str(arguments.get("target", inspect.signature(HypernetCallback).parameters["target"].default))
