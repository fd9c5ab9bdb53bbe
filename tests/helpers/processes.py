"""Runs a script in two processes that find each other by `jax.distributed`."""

import os
import socket
import subprocess
import sys


def run_two(script, *args, **environment):
    """Runs `python script RANK PORT *args` for both ranks at once, and checks that both succeed."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(port), *map(str, args)],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors)
