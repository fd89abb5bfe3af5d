import os
from pathlib import Path

import pytest
import torch

# Tensors are small: a second thread gains nothing, and beside other work it waits more than it computes.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

LONG = {line for line in Path(__file__).with_name("long.txt").read_text().splitlines() if line and line[0] != "#"}


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats a stack for every kind of device that is not there


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark as slow what long.txt names, which must be there."""
    found = set()
    for item in items:
        names = {item.nodeid, item.nodeid.partition("[")[0]} & LONG
        if names:
            item.add_marker(pytest.mark.slow)
            found |= names
    files = {item.nodeid.partition("::")[0] for item in items}
    gone = [] if any("::" in argument for argument in config.args) else sorted(LONG - found)
    gone = [name for name in gone if name.partition("::")[0] in files]
    if gone:
        raise pytest.UsageError(f"tests/long.txt names what is not there: {', '.join(gone)}")
