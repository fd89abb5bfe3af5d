"""What docs/command_line.md and docs/plugins.md say is so."""

import re
import shlex
from pathlib import Path

import pytest

from lightning_hypernet.cli import main
from lightning_hypernet.cli.commands import COMMANDS, TRAINING

pytest.importorskip("jsonargparse")
DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "command_line.md").read_text()
CALLS = re.findall(r"```console\n\$ lightning-hypernet (.*?)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("command", "printed"), CALLS, ids=[command.split(" --")[0] for command, _ in CALLS])
def test_the_transcript_is_what_is_printed(capsys, command, printed):
    main(shlex.split(command))
    shown = capsys.readouterr()
    assert shown.out + shown.err == printed


def test_every_command_has_its_row():
    assert len(CALLS) == 2
    rows = "".join(line for line in PAGE.splitlines() if line.startswith("|"))
    assert all(re.search(rf"`{name}\b", rows) for name in [*COMMANDS, *TRAINING])


def test_the_code_of_the_page_on_plugins_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "plugins.md").read_text(), re.DOTALL)
    exec(compile(block, "plugins.md", "exec"), {"__name__": "plugins"})
    assert capsys.readouterr().out == ("['losses.decoded.decoder.bias', 'losses.decoded.decoder.weight'] tensor(True)\n")
