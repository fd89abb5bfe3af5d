"""Commands: all of them, with their one line of help, and the parser of those that do not train."""

from __future__ import annotations

import re
from argparse import Action, ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lightning_hypernet.cli.listing import own
from lightning_hypernet.values import choice

TRAINING = {
    "fit": "Train: the LightningModule, its data and the callback come from a YAML file.",
    "validate": "Run the validation set, with the ensemble in the target's place.",
    "test": "Run the test set, with the ensemble in the target's place.",
    "predict": "Run the ensemble on the data for prediction; a callback such as BasePredictionWriter keeps what it gives.",
}
"""The commands of Lightning's own command line."""
_DESCRIPTION = (
    "Train networks that generate networks, look at them, and take plain networks out. Every command has a --help of its own."
)


class _Completion(Action):
    """Prints a script for a shell."""

    def __call__(self, parser: ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        import shtab

        print(shtab.complete(parser, choice("--completion", values, shtab.SUPPORTED_SHELLS)))
        parser.exit()


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        module: Where it is written: a module of this folder with ``arguments(parser)`` and ``run(options)``.
        text: What it does, in a line.
    """

    module: str
    text: str

    def _of(self, name: str) -> Callable[[Any], None]:
        found: Callable[[Any], None] = getattr(import_module(f"lightning_hypernet.cli.{self.module}"), name)
        return found

    def arguments(self, parser: Any) -> None:
        """Give a parser the arguments of the command."""
        self._of("arguments")(parser)

    def parser(self) -> Any:
        """The parser of the command."""
        import jsonargparse

        made = jsonargparse.ArgumentParser(description=self.text, exit_on_error=False)
        self.arguments(made)
        return made

    def run(self, options: Any) -> None:
        """Run the command with parsed options."""
        self._of("run")(options)


COMMANDS = {
    "inspect": Command("inspection", "Show what a hypernetwork of a model would be: filter banks, gauges, sizes, backend."),
    "sample": Command("drawing", "Draw networks and write them as safetensors that load into the plain model."),
    "evaluate": Command("scoring", "Measure members against their ensemble on labelled data."),
    "report": Command("reporting", "Write one HTML page on what the hypernetwork and its networks are."),
    "plugins": Command("listing", "List what is registered: losses, priors, gauges and so on, and which package brought it."),
}


def options_of(name: str) -> list[str]:
    """The options of a command that does not train, as ``--split``."""
    return re.findall(r"--[\w.-]+", COMMANDS[name].parser().format_help())


def add_commands(action: Any) -> None:
    """Add the commands that do not train to a parser's subcommands."""
    for name, command in COMMANDS.items():
        action.add_subcommand(name, command.parser(), help=command.text)


def parser(program: str) -> Any:
    """The parser of the commands that do not train, whose help lists those that do.

    Args:
        program: What the program is called.
    """
    import jsonargparse

    whole = jsonargparse.ArgumentParser(prog=program, description=_DESCRIPTION, exit_on_error=False)
    whole.add_argument(
        "--completion", action=_Completion, metavar="SHELL", help="Print what bash, zsh or tcsh needs to complete commands."
    )
    whole.add_argument("--version", action="version", version=own(), help="Print the version.")
    whole.add_argument("--debug", action="store_true", help="Keep the traceback of an error.")
    action = whole.add_subcommands(metavar="COMMAND")
    for name, text in TRAINING.items():
        one = jsonargparse.ArgumentParser(description=text, exit_on_error=False)
        for option in ("--config", "--model", "--data", "--ckpt_path", "--print_config"):  # the whole parser has many more
            one.add_argument(option)
        action.add_subcommand(name, one, help=text)
    add_commands(action)
    return whole
