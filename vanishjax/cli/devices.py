"""On which devices, and in how many processes, a run is computed."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from vanishjax.cli.options import one_of, whole
from vanishjax.training.interruption import signal_of


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Options that spread a run over devices and processes."""
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--devices", type=whole(1), metavar="N", help="how many to use (default: all, if parallel)"
    )
    group.add_argument(
        "--parallel",
        type=one_of("way to run in parallel", ("jit", "pmap", "shard_map")),
        metavar="HOW",
        help="jit (the compiler divides the work), pmap or shard_map (default: jit, with any other "
        "of these options)",
    )
    group.add_argument(
        "--shard-state",
        nargs="?",
        const="fsdp",
        type=one_of("way to divide the state", ("zero1", "fsdp")),
        metavar="WHAT",
        help="divide among the devices: fsdp, parameters and optimizer state (the default if no "
        "name follows), or zero1, optimizer state only",
    )
    group.add_argument(
        "--accumulate",
        type=whole(1),
        default=1,
        metavar="K",
        help="compute each batch in K parts, for less memory (default: %(default)s)",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="train together with other processes, given the same command with another "
        "--process-id each and a shared --out: where process 0 listens; 'auto' in a cluster that "
        "JAX knows (Slurm, Open MPI, Kubernetes, TPU pods)",
    )
    group.add_argument("--processes", type=whole(1), metavar="N", help="how many there are")
    group.add_argument("--process-id", type=whole(0), metavar="I", help="which this is, from 0")


def check_device_options(options: argparse.Namespace) -> None:
    """Raises ValueError if options clash; needs no JAX."""
    named = options.processes is not None, options.process_id is not None
    if options.coordinator in (None, "auto"):
        if any(named):
            raise ValueError("--processes and --process-id go with --coordinator HOST:PORT")
    else:
        host, _, port = options.coordinator.rpartition(":")
        if not (host and port.isdecimal()):
            raise ValueError(
                f"--coordinator takes HOST:PORT, such as 10.0.0.1:1234, got {options.coordinator}"
            )
        if not all(named):
            raise ValueError("--coordinator HOST:PORT needs --processes N and --process-id I")
        if options.process_id >= options.processes:
            raise ValueError(
                f"--process-id counts from 0 to {options.processes - 1}, got {options.process_id}"
            )
    if options.coordinator is not None and options.out is None:
        raise ValueError("--coordinator needs --out DIR, a folder that all processes share")
    if options.shard_state is not None and options.parallel not in (None, "jit"):
        raise ValueError(f"--shard-state goes with --parallel jit, not {options.parallel}")
    if options.coordinator is not None and options.parallel == "pmap":
        raise ValueError("--parallel pmap is for one process; several take jit or shard_map")


@contextlib.contextmanager
def joined_processes(options: argparse.Namespace) -> Iterator[bool]:
    """Joins the other processes, if there are any; if one dies or stalls, this one ends.

    Yields:
      Whether this process is the one that writes.
    """
    if options.coordinator is None:
        yield True
        return
    # JAX would swallow SIGTERM, so that nobody could end a run but by SIGKILL.
    os.environ.setdefault("JAX_ENABLE_PREEMPTION_SERVICE", "0")
    import jax

    from vanishjax.training.peers import watched_peers

    if options.coordinator == "auto":
        jax.distributed.initialize()
        from jax._src import distributed  # the only place that knows where process 0 is

        host = str(distributed.global_state.coordinator_address).rpartition(":")[0]
    else:
        host, _, port = options.coordinator.rpartition(":")
        local = host in ("localhost", "127.0.0.1")
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process_id,
            coordinator_bind_address=f"127.0.0.1:{port}" if local else None,
        )
    try:
        with watched_peers(host):
            yield jax.process_index() == 0
    except BaseException as error:
        # At its end Python would wait for processes that have gone; the caller speaks before that.
        status = 2 if isinstance(error, ValueError) else 1
        if isinstance(error, KeyboardInterrupt):
            status = 128 + signal_of(error)
        atexit.register(leave_at_once, status)
        raise
    jax.distributed.shutdown()


def leave_at_once(status: int) -> None:
    """Ends the process without Python's own end, once what was printed is out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads any more
            stream.flush()
    os._exit(status)


def layout_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `fit` takes to compute as the options say.

    Raises:
      ValueError: There are fewer devices.
    """
    import jax
    from jax.sharding import Mesh

    chosen = (options.devices, options.parallel, options.shard_state, options.coordinator)
    if all(option is None for option in chosen):
        return {"accumulate": options.accumulate}
    devices = jax.devices()
    if options.devices is not None and options.devices > len(devices):
        raise ValueError(f"--devices {options.devices}: there are only {len(devices)}")
    if options.devices is not None and jax.process_count() > 1 and options.devices < len(devices):
        raise ValueError(
            f"--devices {options.devices}: {jax.process_count()} processes use all "
            f"{len(devices)} of theirs"
        )
    return {
        "parallel": options.parallel or "jit",
        "mesh": Mesh(devices[: options.devices], ("devices",)),
        "shard_state": options.shard_state,
        "accumulate": options.accumulate,
    }
