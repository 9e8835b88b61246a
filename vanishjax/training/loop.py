"""The training loop: epochs of chunks of scanned steps over arrays."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vanishjax.training.batches import (
    Arrays,
    chunked,
    count_examples,
    divided,
    fingerprint,
    shuffled,
)
from vanishjax.training.evaluation import Means, make_evaluate
from vanishjax.training.history import History
from vanishjax.training.interruption import Interrupted, deferred
from vanishjax.training.layout import Parallel, Sharded, make_layout
from vanishjax.training.resumption import Checkpoints, Position, key_numbers
from vanishjax.training.state import TrainState
from vanishjax.training.step import local_step

# Steps in one compiled scan: enough that Python costs nothing, few enough that Ctrl-C is prompt.
CHUNK = 50


class Progress(NamedTuple):
    """Where a run stands, handed to a callback after every epoch."""

    epochs: int
    record: dict[str, float]
    steps_per_second: float
    remaining_seconds: float


def fit(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    state: TrainState,
    train: Arrays,
    *,
    epochs: int,
    batch_size: int,
    validation: Arrays | None = None,
    has_aux: bool = False,
    with_key: bool = False,
    on_epoch: Callable[[Progress], None] | None = None,
    observe: Callable[[TrainState], Any] | None = None,
    on_observed: Callable[[Any], None] | None = None,
    checkpoints: Checkpoints | None = None,
    parallel: Parallel | None = None,
    mesh: Mesh | None = None,
    shard_state: Sharded | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, History]:
    """Trains on arrays that fit the device.

    Every epoch visits every example once, in an order drawn from the state's key and step; a last
    batch that is smaller is a step of its own. The epoch runs as scans of `CHUNK` steps over
    batches gathered on the device. Ctrl-C ends the run after the current chunk and gives what was
    done; a second one interrupts at once. SIGTERM and SIGHUP do what the first Ctrl-C does, unless
    the script handles or ignores them itself. The handlers are there while it trains, on the main
    thread only.

    Args:
      loss_fn: As in `make_train_step`.
      tx: The gradient transform.
      state: Where to start; used up.
      train: A pytree of arrays `[examples, ...]`, such as `(inputs, labels)`: what loss_fn takes
        as its batch.
      epochs: How often to visit every example.
      batch_size: Examples a step.
      validation: Arrays like `train`, evaluated after every epoch.
      has_aux: As in `make_train_step`; its metrics are averaged into the history.
      with_key: As in `make_train_step`; evaluation calls loss_fn with `key=None`.
      on_epoch: Called with a `Progress` after every epoch.
      observe: `observe(state)` -> arrays to hand out; compiled into the loop and taken after every
        step.
      on_observed: Called with NumPy arrays `[steps, ...]` of what `observe` gave, some steps at a
        time, in order, while training goes on; all of an epoch's before its `on_epoch`.
      checkpoints: Where to save the run, how often, and whether to go on from what was saved. They
        are made between two scans: those of `every` steps are exact if it's at most `CHUNK`.
      parallel: As in `make_train_step`; every device holds the data and takes its part of each
        batch. In several processes, all call this with the same arguments.
      mesh: As in `make_train_step`.
      shard_state: As in `make_train_step`.
      accumulate: As in `make_train_step`.

    Returns:
      The state after the last step and the learning curves: "epoch", "loss" and loss_fn's metrics
      averaged over the epoch, the same names with "validation_" in front, "seconds" (compilation
      apart) and "steps_per_second". A run cut short says so: `History.interrupted`.

    Raises:
      ValueError: Arrays of different length, epochs below 1 or fewer than a checkpoint has behind
        it, a batch_size below 1 or above the number of examples, one of observe and on_observed
        without the other, or checkpoints of another run: see `Checkpoints.restore`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
      >>> tx = optax.sgd(0.5)
      >>> state = TrainState.create(jnp.zeros(()), tx)
      >>> state, history = fit(loss_fn, tx, state, jnp.ones(6), epochs=2, batch_size=4)
      >>> print(state.params, state.step, history.to_dict()["epoch"])
      1.0 4 [1, 2]
    """
    examples = count_examples(train)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not 1 <= batch_size <= examples:
        raise ValueError(
            f"batch_size must lie between 1 and the {examples} training examples, got {batch_size}"
        )
    if (observe is None) != (on_observed is None):
        raise ValueError("observe and on_observed go together: give both or none")
    layout = make_layout(parallel, mesh, shard_state)
    step = local_step(
        loss_fn,
        tx,
        has_aux=has_aux,
        with_key=with_key,
        axis=layout.axis,
        accumulate=accumulate,
    )
    state = layout.place(state)
    position = Position()
    if checkpoints is not None:
        checkpoints = _with_settings(checkpoints, batch_size, state.key, train, validation)
        state, position = checkpoints.restore(state)
        records = len(position.history.records)
        if records + bool(position.means.steps) > epochs:
            raise ValueError(
                f"{checkpoints.folder}: holds {records} epochs; epochs must be at least that, got "
                f"{epochs}"
            )
    evaluate_fn = make_evaluate(loss_fn, has_aux=has_aux, with_key=with_key)
    chunk = CHUNK if checkpoints is None else min(CHUNK, checkpoints.every or CHUNK)
    train = layout.put(train)

    def run_chunk(state: TrainState, data: Arrays, rows: Any, rest: Any) -> tuple[TrainState, Any]:
        def one(state: TrainState, numbers: Any) -> tuple[TrainState, Any]:
            gathered = [
                None if number is None else jax.tree.map(lambda a, number=number: a[number], data)
                for number in numbers
            ]
            state, metrics = step(state, *gathered)
            return state, (metrics, None if observe is None else observe(state))

        return jax.lax.scan(one, state, (rows, rest))

    jitted = layout.compile(run_chunk, batch_axis=1)

    def parts_of(rows: np.ndarray) -> tuple[Any, Any]:
        return divided(rows, layout.devices * accumulate, axis=1)

    def take(means: Means, rows: np.ndarray, out: Any) -> Means:
        metrics, observed = jax.device_get(out)
        if on_observed is not None:
            on_observed(observed)
        return means.add(rows.shape[1], metrics)

    done = position.means.steps
    shapes = {
        rows.shape
        for start in (done, 0)
        for rows in chunked(np.arange(examples), batch_size, chunk, start)
    }
    compiled = {
        shape: jitted.ahead(state, train, *parts_of(np.zeros(shape, np.int32))) for shape in shapes
    }
    history, step_count = position.history, int(state.step)
    saved_at = step_count

    with deferred() as asked:
        if asked.signal and jax.process_count() == 1:
            raise Interrupted(asked.signal)  # nothing has been done that could be lost
        started, first_epoch = time.perf_counter(), len(history.records)
        for epoch in range(first_epoch + 1, epochs + 1):
            epoch_started = time.perf_counter() - position.seconds
            means, pending = position.means, None
            order = shuffled(state.key, step_count - means.steps, examples)
            for rows in chunked(order, batch_size, chunk, means.steps):
                state, out = compiled[rows.shape](state, train, *parts_of(rows))
                step_count += len(rows)
                if pending is not None:
                    # One chunk computes while the next is dispatched, never more.
                    means = take(means, *pending)
                pending = rows, out
                if jax.process_count() > 1:
                    # Two programs that wait for other processes must not run at once: each process
                    # might take them in another order, and all would wait for ever.
                    jax.block_until_ready((state, out))
                stop = _anywhere(asked.signal)
                if checkpoints is not None and (
                    stop or checkpoints.due(step_count - saved_at, epoch_ended=False)
                ):
                    means, pending = take(means, *pending), None
                    if means.examples < examples:
                        seconds = time.perf_counter() - epoch_started
                        checkpoints.save(state, Position(history, means, seconds))
                        saved_at = step_count
                if stop:
                    break
            if pending is not None:
                means = take(means, *pending)
            seconds = time.perf_counter() - epoch_started
            record = {"epoch": epoch, **means.values()}
            if validation is not None:
                scores = evaluate_fn(state.params, validation)
                record |= {f"validation_{name}": value for name, value in scores.items()}
            record |= {"seconds": seconds, "steps_per_second": means.steps / seconds}
            history, position = history.add(record), Position()
            if on_epoch is not None:
                elapsed = time.perf_counter() - started
                remaining = elapsed / (epoch - first_epoch) * (epochs - epoch)
                on_epoch(Progress(epochs, record, means.steps / seconds, remaining))
            stop, whole = stop or _anywhere(asked.signal), means.examples == examples
            if (
                checkpoints is not None
                and whole
                and (
                    stop
                    or epoch == epochs
                    or checkpoints.due(step_count - saved_at, epoch_ended=True)
                )
            ):
                checkpoints.save(state, Position(history))
                saved_at = step_count
            if stop:
                cut_short = epoch < epochs or not whole
                return state, dataclasses.replace(history, interrupted=cut_short, signal=stop)
        return state, dataclasses.replace(history, signal=_anywhere(asked.signal))


def _with_settings(
    checkpoints: Checkpoints, batch_size: int, key: jax.Array, train: Arrays, validation: Arrays
) -> Checkpoints:
    """With what decides the run's course beside the state, so that no other run goes on from it."""
    own = {
        "batch_size": batch_size,
        "key": key_numbers(key),
        "training data of checksum": fingerprint(train),
        "validation data of checksum": fingerprint(validation),
    }
    return dataclasses.replace(checkpoints, settings={**checkpoints.settings, **own})


def _anywhere(number: int) -> int:
    """The signal that any of the processes got, or 0: all must stop at the same step."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number)).max())
