"""What every benchmark writes: results as JSON, with commit, versions and device."""

import argparse
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"
QUICK = Path("runs/benchmarks")


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, rest = super().parse_known_args(args, namespace)
        if options.out is None:
            options.out = QUICK if options.quick else RESULTS
        return options, rest


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the options that all benchmarks share."""
    made = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--out",
        type=Path,
        help=f"folder for the JSON: benchmarks/results if not given, {QUICK} for a quick run",
    )
    made.add_argument("--quick", action="store_true", help="a smaller run, not for quoting")
    return made


def spread(samples: list[float]) -> dict[str, Any]:
    """Median, quartiles and every sample; of samples that aren't all finite, these alone.

    What is not a number isn't JSON: null stands for it.
    """
    if not np.isfinite(samples).all():
        return {"median": None, "samples": [x if np.isfinite(x) else None for x in samples]}
    low, middle, high = np.percentile(samples, [25, 50, 75]).tolist()
    return {"median": middle, "quartiles": [low, high], "samples": samples}


def write(name: str, out: Path, settings: dict[str, Any], results: Any) -> Path:
    """Writes `<out>/<name>.json`."""
    content = {
        "benchmark": name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(),
        **machine(),
        "settings": settings,
        "results": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def machine() -> dict[str, Any]:
    """What it runs on."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "host_cores": len(os.sched_getaffinity(0)),
        },
    }


def commit() -> dict[str, Any]:
    """The commit, and whether the code differs from it; what was measured may."""
    code = (":/vanishjax", ":/benchmarks", ":(top,exclude)benchmarks/results")
    changed = _git("status", "--porcelain", "--", *code)
    return {"commit": _git("rev-parse", "HEAD"), "uncommitted_changes": bool(changed)}


PACKAGES = ("vanishjax", "jax", "jaxlib", "flax", "optax", "numpy", "keras", "torch")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
