"""The training loop: epochs of steps over arrays or batches, recorded, saved and gone on with."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from vanishjax.problem import Problem
from vanishjax.training.batches import count_examples, fingerprint
from vanishjax.training.evaluation import flat_metrics, make_evaluate
from vanishjax.training.feeds import ArrayFeed, Feed, StreamFeed
from vanishjax.training.history import History
from vanishjax.training.interruption import Interrupted, deferred
from vanishjax.training.layout import Layout, Parallel, Sharded, make_layout
from vanishjax.training.resumption import Checkpoints, Position, key_numbers
from vanishjax.training.run import Run
from vanishjax.training.sources import Stream, as_arrays, is_tree_of_arrays
from vanishjax.training.state import TrainState
from vanishjax.training.step import local_step, problem_to_train

# Steps in one compiled scan: enough that Python costs nothing, few enough that Ctrl-C is prompt.
CHUNK = 50


class Progress(NamedTuple):
    """Where a run stands, handed to a callback after every epoch."""

    epochs: int
    record: dict[str, float]
    steps_per_second: float
    remaining_seconds: float


def fit(
    loss_fn: Callable[..., Any] | Problem,
    tx: optax.GradientTransformation | TrainState | None = None,
    state: Any = None,
    train: Any = None,
    *,
    epochs: int,
    batch_size: int | None = None,
    validation: Any = None,
    has_aux: bool = False,
    with_key: bool = False,
    with_state: bool = False,
    on_epoch: Callable[[Progress], None] | None = None,
    observe: Callable[[TrainState], Any] | None = None,
    on_observed: Callable[[Any], None] | None = None,
    checkpoints: Checkpoints | None = None,
    parallel: Parallel | None = None,
    mesh: Mesh | None = None,
    shard_state: Sharded | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, History]:
    """Trains: `fit(problem, state, train, ...)` or `fit(loss_fn, tx, state, train, ...)`.

    On arrays that fit the device, every epoch visits every example once, in an order drawn from the
    state's key and step; a last batch that is smaller is a step of its own. The epoch runs as scans
    of `CHUNK` steps over batches gathered on the device.

    On batches, every epoch takes those of an iterable, such as a list, a Grain or torch DataLoader,
    or of what a function `epoch -> iterator` gives, epochs counted from 1. The next batch is loaded
    and put on the device while one computes. Batches of other sizes compile anew. An iterable
    without an end needs one: ``lambda epoch: itertools.islice(stream, 1000)``.

    Ctrl-C ends the run after the current chunk, or the next batch, and gives what was done; a
    second one interrupts at once. SIGTERM and SIGHUP do what the first Ctrl-C does, unless the
    script handles or ignores them itself. The handlers are there while it trains, on the main
    thread only.

    Args:
      loss_fn: A `Problem`, which has the transform and the flags as well; or as in
        `make_train_step`.
      tx: The gradient transform. With a problem it is left out: state and train come next.
      state: Where to start; used up.
      train: With a batch_size, a pytree of arrays `[examples, ...]`, such as `(inputs, labels)`:
        what loss_fn takes as its batch. Without one, an iterable of batches or a function of the
        epoch.
      epochs: How often to visit every example.
      batch_size: Examples a step, for arrays; batches have a size of their own.
      validation: Arrays or batches like `train`, evaluated after every epoch: in evaluation mode,
        with the model state reached.
      has_aux: As in `make_train_step`; its metrics are averaged into the history, those of nested
        dicts by names such as "accuracy/top1". A metric named `weight` weighs the averages.
      with_key: As in `make_train_step`; evaluation calls loss_fn with `key=None`.
      with_state: As in `make_train_step`.
      on_epoch: Called with a `Progress` after every epoch.
      observe: `observe(state)` -> arrays to hand out; compiled into the loop and taken after every
        step.
      on_observed: Called with NumPy arrays `[steps, ...]` of what `observe` gave, some steps at a
        time, in order, while training goes on; all of an epoch's before its `on_epoch`.
      checkpoints: Where to save the run, how often, and whether to go on from what was saved. On
        arrays they are made between two scans: those of `every` steps are exact if it's at most
        `CHUNK`. In the middle of an epoch over batches, the run goes on where the iterator can be
        set (Grain's `get_state` and `set_state`); of a list, and of what a function gives, the
        batches that were done are drawn and left out; else resuming is an error that says so.
      parallel: As in `make_train_step`; every device holds the arrays and takes its part of each
        batch. In several processes, all call this with the same arguments, and the same batches.
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
        without the other, or checkpoints of another run: see `Checkpoints.restore`. Arrays without
        a batch_size, or batches with one; an iterator for several epochs; an epoch or a batch
        without an example; a metric that is no scalar.
      TypeError: Arguments of both forms are mixed up, or as in `make_train_step`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
      >>> tx = optax.sgd(0.5)
      >>> state = TrainState.create(jnp.zeros(()), tx)
      >>> state, history = fit(loss_fn, tx, state, jnp.ones(6), epochs=2, batch_size=4)
      >>> print(state.params, state.step, history.to_dict()["epoch"])
      1.0 4 [1, 2]
    """
    problem, state, train = _sorted(
        loss_fn, tx, state, train, has_aux=has_aux, with_key=with_key, with_state=with_state
    )
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if (observe is None) != (on_observed is None):
        raise ValueError("observe and on_observed go together: give both or none")
    train, validation = _data(train, validation, batch_size)
    layout = make_layout(parallel, mesh, shard_state)
    local = local_step(problem, axis=layout.axis, accumulate=accumulate)

    def step(state: TrainState, batch: Any, rest: Any) -> tuple[TrainState, Any]:
        state, metrics = local(state, batch, rest)
        return state, (flat_metrics(metrics), None if observe is None else observe(state))

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
    first_epoch = len(position.history.records)
    for stream in (train, validation):
        if isinstance(stream, Stream):
            stream.check_epochs(epochs - first_epoch)
    evaluate_fn = make_evaluate(problem)
    chunk = CHUNK if checkpoints is None else min(CHUNK, checkpoints.every or CHUNK)
    feed = _feed(train, step, layout, batch_size, chunk, accumulate)
    feed.prepare(state, position.means.steps)

    with deferred() as asked:
        if asked.signal and jax.process_count() == 1:
            raise Interrupted(asked.signal)  # nothing has been done that could be lost
        run = Run(
            feed,
            state,
            position,
            asked,
            chunk=chunk,
            checkpoints=checkpoints,
            on_observed=on_observed,
        )
        started = time.perf_counter()
        for number in range(first_epoch + 1, epochs + 1):
            means, seconds, is_whole, signal = run.epoch(number)
            record = {"epoch": number, **means.values()}
            if validation is not None:
                scores = evaluate_fn(run.state, _of_epoch(validation, number))
                record |= {f"validation_{name}": value for name, value in scores.items()}
            steps_per_second = means.steps / seconds
            record |= {"seconds": seconds, "steps_per_second": steps_per_second}
            run.record(record)
            if on_epoch is not None:
                elapsed = time.perf_counter() - started
                remaining = elapsed / (number - first_epoch) * (epochs - number)
                on_epoch(Progress(epochs, record, steps_per_second, remaining))
            signal = signal or run.signal()
            if is_whole:
                run.save(is_last=bool(signal) or number == epochs)
            if signal:
                cut_short = number < epochs or not is_whole
                history = dataclasses.replace(run.history, interrupted=cut_short, signal=signal)
                return run.state, history
        return run.state, dataclasses.replace(run.history, signal=run.signal())


def _sorted(
    loss_fn: Any, tx: Any, state: Any, train: Any, **flags: bool
) -> tuple[Problem, TrainState, Any]:
    """(problem, state, train) from the arguments of either form of `fit`.

    Raises:
      TypeError: They are mixed up.
    """
    if isinstance(loss_fn, Problem) and (isinstance(tx, TrainState) or train is None):
        if isinstance(tx, TrainState) and not (state is None or train is None):
            raise TypeError("fit(problem, state, train) got one argument too many")
        if not isinstance(state, TrainState):
            tx, state, train = None, tx, state if train is None else train
    problem = problem_to_train(loss_fn, tx, **flags)
    if not isinstance(state, TrainState):
        raise TypeError(
            "state must be a TrainState, as TrainState.create(problem) gives it, got "
            f"{type(state).__name__}: fit(problem, state, train) or fit(loss_fn, tx, state, train)"
        )
    if train is None:
        raise TypeError("train is missing: fit(problem, state, train)")
    return problem, state, train


def _data(train: Any, validation: Any, batch_size: int | None) -> tuple[Any, Any]:
    """Both as arrays, or as streams of batches."""
    trees = [is_tree_of_arrays(data) for data in (train, validation)]
    if batch_size is None:
        if trees[0] and not isinstance(train, list):
            raise ValueError(
                "train is arrays: give batch_size, the number of examples a step; batches come in "
                "a list, not a tuple"
            )
        train = Stream(train, "train")
    else:
        if not trees[0]:
            raise ValueError(
                f"batch_size is for arrays; train is a {type(train).__name__}, whose batches have "
                "a size of their own: leave batch_size out"
            )
        train = as_arrays(train)
        examples = count_examples(train)
        if not 1 <= batch_size <= examples:
            raise ValueError(
                f"batch_size must lie between 1 and the {examples} training examples, got "
                f"{batch_size}"
            )
    if validation is None:
        return train, None
    # A list may be batches, or a tree of arrays as train is.
    if trees[1] and (
        not isinstance(validation, list)
        or (batch_size is not None and _structure(validation) == _structure(train))
    ):
        return train, as_arrays(validation)
    return train, Stream(validation, "validation")


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _feed(
    train: Any, step: Any, layout: Layout, batch_size: int | None, chunk: int, accumulate: int
) -> Feed:
    if isinstance(train, Stream) or batch_size is None:
        return StreamFeed(step, layout, train, accumulate)
    return ArrayFeed(step, layout, train, batch_size, chunk, accumulate)


def _of_epoch(validation: Any, epoch: int) -> Any:
    return validation.epoch(epoch) if isinstance(validation, Stream) else validation


def _with_settings(
    checkpoints: Checkpoints, batch_size: int | None, key: jax.Array, train: Any, validation: Any
) -> Checkpoints:
    """With what decides the run's course beside the state, so that no other run goes on from it."""

    def checksum(data: Any) -> str | None:
        return None if isinstance(data, Stream) else fingerprint(data)

    own = {
        "batch_size": batch_size,
        "key": key_numbers(key),
        "training data of checksum": checksum(train),
        "validation data of checksum": checksum(validation),
    }
    return dataclasses.replace(checkpoints, settings={**checkpoints.settings, **own})
