"""Two processes of one program, as a launcher starts them."""

import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def on_two(program, *arguments, timeout=500):
    """Run ``python -m program`` on two ranks; what both printed."""
    common = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-m", program, *map(str, arguments)]
    runs = [
        subprocess.Popen(
            command, env={**common, "LOCAL_RANK": str(rank), "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        printed = [run.communicate(timeout=timeout)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert all(run.returncode == 0 for run in runs), "\n".join(one[-3000:] for one in printed)
    return printed
