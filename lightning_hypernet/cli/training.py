"""Training: fit, validate, test and predict, by Lightning's own command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import update_wrapper
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

from lightning_hypernet.cli.commands import TRAINING, add_commands


def train(program: str, arguments: Sequence[str], complete: bool = False) -> None:
    """Run one of the commands that train.

    Args:
        program: What the program is called.
        arguments: What stands behind it.
        complete: Whether the parser holds the other commands too, as completions of a shell need it.
    """
    texts = {name: {"description": text, "exit_on_error": False} for name, text in TRAINING.items()}
    parsers = {"prog": program, "exit_on_error": False, **texts}
    _command_line(tree_of(arguments), complete)(parser_kwargs=parsers, args=list(arguments))


def tree_of(arguments: Sequence[str]) -> ModuleType:
    """The command line of the package that the LightningModule comes from: `pytorch_lightning`, or `lightning.pytorch`.

    Args:
        arguments: Those of the command, which name the module, or a YAML file that does.
    """
    for path in _models(arguments):
        module, _, name = path.rpartition(".")
        with suppress(Exception):  # what is wrong with it is told when it is built
            named, other = getattr(importlib.import_module(module), name), sys.modules.get("lightning.pytorch")
            if other is not None and issubclass(named, other.LightningModule):
                return importlib.import_module("lightning.pytorch.cli")
    return importlib.import_module("pytorch_lightning.cli")


def _models(arguments: Sequence[str]) -> Iterator[str]:
    """Paths of the class of the module that arguments name."""
    import yaml

    pairs = [one.split("=", 1) if "=" in one else [one, *arguments[i + 1 : i + 2]] for i, one in enumerate(arguments)]
    for option, *value in pairs:
        if option in ("--model", "--model.class_path"):
            yield from value
        elif option in ("-c", "--config") and value and Path(value[0]).is_file():
            with suppress(OSError, ValueError, yaml.YAMLError):
                content = yaml.safe_load(Path(value[0]).read_text())
                model = content.get("model") if isinstance(content, dict) else None
                yield str(model.get("class_path") if isinstance(model, dict) else model)


def _command_line(tree: ModuleType, complete: bool) -> Any:
    """Lightning's command line, of one of its two trees, for hypernetworks."""

    class _Parser(tree.LightningArgumentParser):  # type: ignore[name-defined, misc]
        def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
            action = super().add_subcommands(*args, **kwargs)
            if complete:
                add_commands(action)
            return action

    class _KeepConfig(tree.SaveConfigCallback):  # type: ignore[name-defined, misc]
        def setup(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.loggers:  # elsewhere it would lie among the user's own files
                super().setup(trainer, *args, **kwargs)

    class _CommandLine(tree.LightningCLI):  # type: ignore[name-defined, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(save_config_callback=_KeepConfig, parser_class=_Parser, **options)

        def parse_arguments(self, parser: Any, args: Any) -> None:
            self.config = parser.parse_args(args)

        def after_instantiate_classes(self) -> None:
            """Let an optimizer of the YAML be made when the Hypernet stands in the target's place."""
            chosen = self._get(self.config_init, "optimizer")
            if not chosen:
                return
            schedule = self._get(self.config_init, "lr_scheduler")

            def late(module: Any) -> Any:
                optimizer = tree.instantiate_class(module.parameters(), chosen)
                return self.configure_optimizers(module, optimizer, schedule and tree.instantiate_class(optimizer, schedule))

            self.model.configure_optimizers = MethodType(update_wrapper(late, self.configure_optimizers), self.model)

        def after_fit(self) -> None:
            path = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            if path and self.trainer.is_global_zero:
                sys.stdout.write(f"checkpoint: {Path(path).resolve()}\n")

    return _CommandLine
