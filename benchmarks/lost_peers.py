"""One of several processes is killed, stopped or interrupted: how soon do the others end, and how?

Every trial starts `vanishjax train` in processes that train together on the loopback address,
strikes one of them after the first checkpoint, and measures the seconds until the last of the
others has ended, which statuses they ended with, what they said last, and whether the newest
checkpoint is whole: a run of one process must go on from it.

Beside it the same blows to processes that sum over all of them again and again, and which nothing
looks after but JAX's own heartbeat, set to as many seconds of silence.

    python -m benchmarks lost_peers
"""

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.resume import wait
from vanishjax.training.peers import SILENCE_SECONDS

ROUNDS = 2
LONGEST = 30.0  # seconds that the others are waited for
TRAIN = [
    *("train", "--hidden", "16", "--optimizer", "sgd", "--learning-rate", "0.1"),
    *("--batch-size", "17", "--checkpoint-every", "68"),
]
BLOWS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "interrupted": signal.SIGINT}
# Processes, and which of them is struck: the one that leads, or another.
RUNS = ((2, 0), (2, 1), (3, 1))
SUMS = """
import sys, jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
coordinator, count, index, seconds, mark = sys.argv[1:]
jax.distributed.initialize(
    coordinator, int(count), int(index), heartbeat_timeout_seconds=int(seconds)
)
while True:
    process_allgather(np.ones(1))
    open(mark, "w").close()
"""


def free_address() -> str:
    """An address on this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def side_by_side(commands: Iterable[Sequence[Any]]) -> Iterator[list[subprocess.Popen[str]]]:
    """A process for each command, one device each; none outlives the block."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def together(
    count: int, *arguments: Any
) -> contextlib.AbstractContextManager[list[subprocess.Popen[str]]]:
    """The processes of one command of `vanishjax`; none outlives the block."""
    command = ["-m", "vanishjax", *arguments, "--coordinator", free_address()]
    command += ["--processes", count, "--process-id"]
    return side_by_side([*command, index] for index in range(count))


def struck(processes: list[subprocess.Popen[str]], victim: int, blow: str) -> dict[str, Any]:
    """What becomes of the others when one is struck."""
    processes[victim].send_signal(BLOWS[blow])
    start = time.monotonic()
    others = [process for index, process in enumerate(processes) if index != victim]
    said = [last_words(process, start + LONGEST) for process in others]
    return {
        "processes": len(processes),
        "victim": victim,
        "blow": blow,
        "seconds": None if None in said else time.monotonic() - start,
        "statuses": [process.returncode for process in others],
        "named": [bool(re.search(rf"(?i)(process|task) {victim}\b", text or "")) for text in said],
        "lines": [len((text or "").splitlines()) for text in said],
        "last_lines": [((text or "").splitlines() or [""])[-1] for text in said],
    }


def last_words(process: subprocess.Popen[str], deadline: float) -> str | None:
    """What a process has said when it has ended; None if it goes on."""
    try:
        return process.communicate(timeout=max(0.0, deadline - time.monotonic()))[1]
    except subprocess.TimeoutExpired:
        return None


def trial(count: int, victim: int, blow: str) -> dict[str, Any]:
    """One run and one blow."""
    from vanishjax.training import checkpoint_steps

    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, "run")
        with together(count, *TRAIN, "--epochs", 100000, "--out", folder) as processes:
            wait(processes[0], lambda: checkpoint_steps(folder / "checkpoints"))
            found = struck(processes, victim, blow)
        last = checkpoint_steps(folder / "checkpoints")[-1]
        resumed = [sys.executable, "-m", "vanishjax", *TRAIN, "--out", str(folder), "--resume"]
        resumed += ["--epochs", str(last // 68 + 1)]
        again = subprocess.run(resumed, capture_output=True, text=True, check=False)
    return found | {
        "goes_on": again.returncode == 0 and f"going on from step {last}" in again.stderr
    }


def heartbeat(count: int, victim: int, blow: str) -> dict[str, Any]:
    """One blow to processes that know of each other by JAX alone."""
    with tempfile.TemporaryDirectory() as top:
        marks = [Path(top, str(index)) for index in range(count)]
        command = ["-c", SUMS, free_address(), count]
        silence = int(SILENCE_SECONDS)
        commands = ([*command, i, silence, mark] for i, mark in enumerate(marks))
        with side_by_side(commands) as processes:
            wait(processes[0], lambda: all(mark.exists() for mark in marks))
            return struck(processes, victim, blow)


def ends(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """How the others ended."""
    seconds = [one["seconds"] for one in trials]
    statuses = {status for one in trials for status in one["statuses"]}
    return {
        "trials": len(trials),
        "ended": sum(one is not None for one in seconds),
        "seconds": record.spread([math.nan if one is None else one for one in seconds]),
        "statuses": sorted(statuses - {None}),
        "named": sum(all(one["named"]) for one in trials),
        "goes_on": sum(one.get("goes_on", False) for one in trials),
    }


def main() -> None:
    """Strikes, and writes lost_peers.json."""
    options = record.parser(__doc__).parse_args()
    # A job in the background is started with Ctrl-C ignored, and so are its processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rounds, runs, blows = ROUNDS, RUNS, tuple(BLOWS)
    if options.quick:
        rounds, runs, blows = 1, RUNS[1:2], ("killed",)
    kinds = {"trials": trial, "heartbeat": heartbeat}
    results: dict[str, Any] = {name: [] for name in kinds}
    for _ in range(rounds):
        for blow in blows:
            for name, strike in kinds.items():
                for count, victim in runs:
                    results[name].append(strike(count, victim, blow))
                    print(name, results[name][-1], flush=True)
    summary = {
        name: {blow: ends([one for one in results[name] if one["blow"] == blow]) for blow in blows}
        for name in kinds
    }
    settings = {"command": ["vanishjax", *TRAIN], "rounds": rounds}
    settings |= {"waited": LONGEST, "quick": options.quick}
    record.write("lost_peers", options.out, settings, {"summary": summary, **results})


if __name__ == "__main__":
    main()
