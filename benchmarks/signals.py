"""Runs that get signals at random moments: does each say so, and end the same when it goes on?

Every run of `vanishjax train --checkpoint-every` gets one signal, SIGINT, SIGTERM, SIGHUP or
SIGKILL, at a moment between the command's start and its end, and is started again with `--resume`
until it is done. Its parameters, curves and observations are then compared, bit for bit, with those
of a run that nobody touched. Before the command starts, Python itself is loading: a Ctrl-C there
is Python's own affair.

    python -m benchmarks signals
"""

import collections
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.resume import TRAIN, same

SIGNALS, SEED, EPOCHS = 100, 0, 4
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
# One that hasn't ended so long after its signal hangs.
LONGEST_SECONDS = 120.0


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """The run, or what is left of it, in a process of its own that has begun its command."""
    command = [sys.executable, "-m", "vanishjax", *TRAIN, "--epochs", str(epochs)]
    command += ["--out", str(folder), "--resume"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    status = Path(f"/proc/{run.pid}/status")
    while run.poll() is None and not _catches(status.read_text(), signal.SIGTERM):
        time.sleep(0.005)
    return run


def signalled(run: subprocess.Popen[str], number: signal.Signals, seconds: float) -> dict[str, Any]:
    """Sends a run a signal after some seconds of its own time, and says how it ended."""
    while run.poll() is None and _computed(run.pid) < seconds:
        time.sleep(0.002)
    reached = run.poll() is None
    if reached:
        run.send_signal(number)
    sent = time.monotonic()
    try:
        said, _ = run.communicate(timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        run.kill()
        said, _ = run.communicate()
        hung = {"signal": number.name, "after_cpu_seconds": seconds, "ended": "hangs"}
        return {**hung, "errors": errors_in(said)}
    # A run that was through with its command when the signal came dies of it, or ends as it would.
    expected = {0, -number} if number == signal.SIGKILL else {0, 128 + number, -number}
    ended = "as it should"
    if "Traceback" in said:
        ended = "traceback"
    elif run.returncode not in expected:
        ended = "wrong status"
    result = {
        "signal": number.name,
        "reached": reached,
        "after_cpu_seconds": seconds,
        "status": run.returncode,
        "ended": ended,
        "seconds_to_end": time.monotonic() - sent,
    }
    return result if ended == "as it should" else {**result, "errors": errors_in(said)}


def errors_in(said: str) -> list[str]:
    """The names of the exceptions whose tracebacks were printed: no text that holds paths."""
    return re.findall(r"^([\w.]*(?:Error|Exception|Interrupt))\b", said, re.MULTILINE)


def main() -> None:
    """Sends the signals, and writes signals.json."""
    options = record.parser(__doc__).parse_args()
    signals, epochs = (4, 2) if options.quick else (SIGNALS, EPOCHS)
    # Of a job in the background the runs would inherit that Ctrl-C is ignored.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    rng = np.random.default_rng(SEED)
    ends: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as top:
        whole = Path(top, "whole")
        # Twice: the first may have to compile.
        for folder in (Path(top, "first"), whole):
            run, usual = start(folder, epochs), 0.0
            while run.poll() is None:
                usual = max(usual, _computed(run.pid))
                time.sleep(0.002)
            if run.returncode:
                raise RuntimeError(f"the untouched run failed: {run.communicate()[0]}")
        while len(ends) < signals:
            folder, got, status = Path(top, str(len(runs))), 0, None
            fine = True
            while status != 0 and fine:
                # Some of the last run's signals may come when all are sent.
                last = len(ends) >= signals
                number = NUMBERS[int(rng.integers(len(NUMBERS)))]
                seconds = math.inf if last else float(rng.uniform(0.0, usual))
                end = signalled(start(folder, epochs), number, seconds)
                status = end.get("status")
                fine = end["ended"] in ("as it should", "traceback")
                if end.get("reached", True) or end["ended"] != "as it should":
                    ends.append(end)
                    got += 1
                    print(len(ends), end, flush=True)
            runs.append({"signals": got, "same_bits": status == 0 and same(folder, whole)})
            print(runs[-1], flush=True)
    settings = {
        "command": ["vanishjax", *TRAIN, "--epochs", str(epochs)],
        "signals": signals,
        "seed": SEED,
        "quick": options.quick,
    }
    seconds_to_end = [end["seconds_to_end"] for end in ends if "seconds_to_end" in end]
    summary = {
        "signals": dict(collections.Counter(end["signal"] for end in ends)),
        "ended": dict(collections.Counter(end["ended"] for end in ends)),
        "seconds_to_end": record.spread(seconds_to_end),
        "runs": len(runs),
        "same_bits": sum(run["same_bits"] for run in runs),
        "each_signal": ends,
        "each_run": runs,
    }
    record.write("signals", options.out, settings, summary)


def _computed(pid: int) -> float:
    """The processor time that a process has taken: another program's load doesn't change it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _catches(status: str, number: int) -> bool:
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


if __name__ == "__main__":
    main()
