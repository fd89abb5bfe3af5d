"""Main: which command was asked for, and what becomes of errors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from lightning_hypernet.cli.problems import CommandError, plain_warnings, sentence
from lightning_hypernet.values import guess

PROGRAM = "lightning-hypernet"
WRONG, STOPPED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Modules in the working directory can be named as those that are installed, as under ``python -m``.

    Args:
        arguments: What stands behind the program's name; None: what the process was called with. With ``--debug`` among them
            errors keep their traceback.

    Returns:
        0; 2 where something is wrong, of which one sentence on standard error tells; 130 if the user stopped it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with plain_warnings():
            _run([one for one in given if one != "--debug"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else WRONG if end.code else 0
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"{PROGRAM}: error: {sentence(error)}", file=sys.stderr)
        return WRONG
    return 0


def _run(arguments: list[str]) -> None:
    from lightning_hypernet.cli.commands import COMMANDS, TRAINING, options_of, parser

    asked = next((one for one in arguments if not one.startswith("-")), None)
    completes = "_ARGCOMPLETE" in os.environ
    if arguments[:1] != ["--completion"] and (asked in TRAINING or completes):
        from lightning_hypernet.cli.training import train

        train(PROGRAM, arguments, completes)
        return
    try:
        options = parser(PROGRAM).parse_args(arguments)
    except Exception as error:
        odd = re.search(r"unrecognized arguments:.*?(--[\w.-]+)", str(error))
        if not odd or asked not in COMMANDS:
            raise
        near = guess(odd[1], options_of(asked)) or f"; lightning-hypernet {asked} --help lists what there is"
        raise CommandError(f"{asked} has no option {odd[1]}{near}") from error
    COMMANDS[options.subcommand].run(options[options.subcommand])
