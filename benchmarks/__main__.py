"""Runs the benchmarks one after the other, each in a process of its own, and says how they ended.

    python -m benchmarks --data-dir FOLDER      # all of them, for hours
    python -m benchmarks step_time depth        # by name
    python -m benchmarks --quick                # all of them small, for minutes; not for quoting
    python -m benchmarks --list

Exit status: 0 all done, 1 one or more failed, 2 bad usage, 130 interrupted.
"""

import argparse
import ast
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Benchmark(NamedTuple):
    """What a script in this folder needs.

    Attributes:
      data: It takes a folder of data sets.
      needs_data: It can do nothing without one.
      package: One that it needs and vanishjax doesn't.
    """

    data: bool = False
    needs_data: bool = False
    package: str | None = None


PACKAGE = "benchmarks"
BENCHMARKS = {
    "response": Benchmark(),
    "one_network": Benchmark(),
    "trainability": Benchmark(),
    "step_time": Benchmark(),
    "argument_order": Benchmark(),
    "training_speed": Benchmark(package="keras"),
    "fit_overhead": Benchmark(),
    "monitoring": Benchmark(),
    "parallel_step": Benchmark(),
    "depth": Benchmark(),
    "low_precision": Benchmark(),
    "scaling": Benchmark(),
    "resume": Benchmark(),
    "signals": Benchmark(),
    "lost_peers": Benchmark(),
    "damage": Benchmark(),
    "photographs": Benchmark(data=True, needs_data=True),
    "article": Benchmark(data=True, needs_data=True),
    "diagnosis": Benchmark(),
    "published_rules": Benchmark(),
    "real_networks": Benchmark(),
    "real_cures": Benchmark(),
    "long_cures": Benchmark(),
    "verdict_cost": Benchmark(),
    "headline": Benchmark(data=True, needs_data=True),
    "deep_chains": Benchmark(data=True, needs_data=True),
    "long_memory": Benchmark(),
    "coordinate_check": Benchmark(data=True, needs_data=True),
    "deep_convolutions": Benchmark(data=True, needs_data=True),
    "deep_attention": Benchmark(data=True, needs_data=True),
    "cure": Benchmark(data=True),
}


def reason_to_skip(name: str, options: argparse.Namespace) -> str | None:
    """Why a benchmark can't run with these options."""
    benchmark = BENCHMARKS[name]
    if options.data_dir is None and benchmark.needs_data:
        return "it needs --data-dir, a folder with mnist and fashion-mnist"
    if benchmark.package is not None and find_spec(benchmark.package) is None:
        return f"it needs {benchmark.package}: pip install {benchmark.package}"
    return None


def command(name: str, options: argparse.Namespace) -> list[str]:
    """How a benchmark is started."""
    benchmark = BENCHMARKS[name]
    words = [sys.executable, "-m", f"{PACKAGE}.{name}"]
    if options.quick:
        words.append("--quick")
    if options.out is not None:
        words += ["--out", str(options.out)]
    if benchmark.data and options.data_dir is not None:
        words += ["--data-dir", str(options.data_dir)]
    return words


def summary(name: str) -> str:
    """The first line of a benchmark's docstring, and what it needs."""
    found = find_spec(f"{PACKAGE}.{name}")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"no module {PACKAGE}.{name}")
    docstring = ast.get_docstring(ast.parse(Path(found.origin).read_text())) or ""
    need = " (needs --data-dir)" if BENCHMARKS[name].needs_data else ""
    return f"{name:15} {docstring.partition(chr(10))[0]}{need}"


def run(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Runs them all.

    Returns:
      The names of those that failed.
    """
    failed = []
    for number, name in enumerate(names, 1):
        head = f"[{number}/{len(names)}] {name}"
        reason = reason_to_skip(name, options)
        if reason is not None:
            print(f"{head}: skipped, {reason}", flush=True)
            continue
        print(head, flush=True)
        started = time.perf_counter()
        status = subprocess.run(command(name, options), check=False).returncode
        ended = f"failed with status {status}" if status else "done"
        print(f"{head}: {ended} after {time.perf_counter() - started:.0f} s", flush=True)
        if status:
            failed.append(name)
    return failed


def make_parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; all if none is named")
    parser.add_argument("--quick", action="store_true", help="smaller runs, not for quoting")
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    parser.add_argument("--data-dir", type=Path, help="folder with mnist and fashion-mnist")
    parser.add_argument("--list", action="store_true", help="name them all and end")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line names; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    names = list(dict.fromkeys(options.names or BENCHMARKS))
    if options.list:
        print(*map(summary, names), sep="\n")
        return 0
    try:
        failed = run(names, options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if failed:
        print(f"{len(failed)} of {len(names)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
