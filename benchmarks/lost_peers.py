"""One of several processes is killed, stopped or interrupted: how soon do the others end, and how?

Every trial starts `vanishjax train` in processes that train together on the loopback address,
strikes one of them after the first checkpoint, and measures the seconds until the last of the
others has ended, which statuses they ended with, what they said last, and whether the newest
checkpoint is whole: a run of one process must go on from it.

    python -m benchmarks lost_peers
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.resume import wait

ROUNDS = 2
TRAIN = [
    *("train", "--hidden", "16", "--optimizer", "sgd", "--learning-rate", "0.1"),
    *("--batch-size", "17", "--checkpoint-every", "68"),
]
BLOWS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "interrupted": signal.SIGINT}
# Processes, and which of them is struck: the one that leads, or another.
RUNS = ((2, 0), (2, 1), (3, 1))


@contextlib.contextmanager
def together(count: int, *arguments: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of one command, one device each; none outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "vanishjax", *map(str, arguments)]
    command += ["--coordinator", address, "--processes", str(count)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        processes = []
        for index in range(count):
            process = subprocess.Popen(
                [*command, "--process-id", str(index)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def trial(count: int, victim: int, blow: str) -> dict[str, Any]:
    """One run and one blow."""
    from vanishjax.training import checkpoint_steps

    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, "run")
        with together(count, *TRAIN, "--epochs", "100000", "--out", folder) as processes:
            wait(processes[0], lambda: checkpoint_steps(folder / "checkpoints"))
            processes[victim].send_signal(BLOWS[blow])
            struck = time.monotonic()
            others = [process for index, process in enumerate(processes) if index != victim]
            said = [process.communicate(timeout=120)[1] for process in others]
            seconds = time.monotonic() - struck
        last = checkpoint_steps(folder / "checkpoints")[-1]
        resumed = [sys.executable, "-m", "vanishjax", *TRAIN, "--out", str(folder), "--resume"]
        resumed += ["--epochs", str(last // 68 + 1)]
        again = subprocess.run(resumed, capture_output=True, text=True, check=False)
    return {
        "processes": count,
        "victim": victim,
        "blow": blow,
        "seconds": seconds,
        "statuses": [process.returncode for process in others],
        "last_lines": [(text.splitlines() or [""])[-1] for text in said],
        "goes_on": again.returncode == 0 and f"going on from step {last}" in again.stderr,
    }


def main() -> None:
    """Strikes, and writes lost_peers.json."""
    options = record.parser(__doc__).parse_args()
    rounds, runs, blows = ROUNDS, RUNS, tuple(BLOWS)
    if options.quick:
        rounds, runs, blows = 1, RUNS[1:2], ("killed",)
    trials = []
    for _ in range(rounds):
        for blow in blows:
            for count, victim in runs:
                trials.append(trial(count, victim, blow))
                print(trials[-1], flush=True)
    summary = {
        blow: record.spread([one["seconds"] for one in trials if one["blow"] == blow])
        | {"goes_on": sum(one["goes_on"] for one in trials if one["blow"] == blow)}
        for blow in blows
    }
    settings = {"command": ["vanishjax", *TRAIN], "rounds": rounds, "quick": options.quick}
    record.write("lost_peers", options.out, settings, {"summary": summary, "trials": trials})


if __name__ == "__main__":
    main()
