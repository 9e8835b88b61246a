"""Runs killed by SIGKILL at random moments, half of them during a save: does each end the same?

Every trial starts `vanishjax train` in a process, kills it, goes on with `--resume`, and compares
parameters, curves and observations with those of a run that nobody touched, bit for bit. A
kill "during a save" is one that found the folder of an unfinished checkpoint.

    python -m benchmarks resume
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record

TRIALS, SEED, EPOCHS = 20, 0, 10
TRAIN = [
    *("train", "--hidden", "32", "--batch-size", "16", "--monitor-every", "8"),
    *("--checkpoint-every", "20"),
]
UNFINISHED = "*orbax-checkpoint-tmp*"


def start(folder: Path, *more: str, epochs: int = EPOCHS) -> subprocess.Popen[bytes]:
    """The run in a process of its own."""
    command = [sys.executable, "-m", "vanishjax", *TRAIN, "--epochs", str(epochs)]
    command += ["--out", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(run: subprocess.Popen[bytes], folder: Path, seconds: float, in_save: bool) -> bool:
    """Kills a run some seconds after it began to save, and during a save if asked to.

    Returns:
      Whether it was saving.
    """
    saves = folder / "checkpoints"
    before = set(saves.glob("*"))

    def unfinished() -> set[Path]:
        return set(saves.glob(UNFINISHED)) - before

    wait(run, lambda: set(saves.glob("*")) - before)
    time.sleep(seconds)
    while in_save:
        wait(run, unfinished)
        # A fast save can end between the look and the blow: it's looked at again while it rests.
        run.send_signal(signal.SIGSTOP)
        if unfinished():
            break
        run.send_signal(signal.SIGCONT)
    run.send_signal(signal.SIGKILL)
    run.wait()
    return bool(unfinished())


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a run came to, times apart, and its parameters."""
    from safetensors.numpy import load_file

    result = json.loads((folder / "train.json").read_text())
    for name in ("seconds", "steps_per_second"):
        result["history"].pop(name)
    return result, load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    """Whether two runs came to the same, bit for bit."""
    (result, params), (result2, params2) = outcome(one), outcome(other)
    bits = {name: value.tobytes() for name, value in params.items()}
    return result == result2 and bits == {name: value.tobytes() for name, value in params2.items()}


def main() -> None:
    """Kills and resumes, and writes resume.json."""
    from vanishjax.training import checkpoint_steps

    options = record.parser(__doc__).parse_args()
    trials, epochs, latest = (1, 3, 0.5) if options.quick else (TRIALS, EPOCHS, 4.0)
    rng = np.random.default_rng(SEED)
    results = []
    with tempfile.TemporaryDirectory() as top:
        whole = Path(top, "whole")
        if start(whole, epochs=epochs).wait():
            raise RuntimeError("the untouched run failed")
        for trial in range(trials):
            folder, in_save = Path(top, str(trial)), trial % 2 == 1
            after = rng.uniform(0.0, latest)
            was_saving = kill(start(folder, epochs=epochs), folder, after, in_save)
            steps = checkpoint_steps(folder / "checkpoints")
            status = start(folder, "--resume", epochs=epochs).wait()
            results.append(
                {
                    "killed_after_seconds": after,
                    "in_mid_save": was_saving,
                    "went_on_from_step": steps[-1] if steps else None,
                    "status": status,
                    "same_bits": status == 0 and same(folder, whole),
                }
            )
            print(trial, results[-1], flush=True)
    command = ["vanishjax", *TRAIN, "--epochs", str(epochs)]
    settings = {"command": command, "trials": trials, "seed": SEED}
    summary = {
        "trials": len(results),
        "in_mid_save": sum(result["in_mid_save"] for result in results),
        "same_bits": sum(result["same_bits"] for result in results),
        "runs": results,
    }
    record.write("resume", options.out, {**settings, "quick": options.quick}, summary)


def wait(run: subprocess.Popen[Any], condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Waits until a condition holds of a run that goes on."""
    deadline = time.monotonic() + seconds
    while not condition():
        if run.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run ended with {run.poll()} before it could be killed")
        time.sleep(0.001)


if __name__ == "__main__":
    main()
