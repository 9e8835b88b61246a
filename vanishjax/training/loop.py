"""The training loop: epochs of chunks of scanned steps over arrays, and evaluation."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vanishjax.training.history import History
from vanishjax.training.state import TrainState
from vanishjax.training.step import local_step

Arrays: TypeAlias = Any
LossFn: TypeAlias = Callable[..., Any]

# Steps in one compiled scan: enough that Python costs nothing, few enough that Ctrl-C is prompt.
CHUNK = 50


class Progress(NamedTuple):
    """Where a run stands, handed to a callback after every epoch."""

    epochs: int
    record: dict[str, float]
    steps_per_second: float
    remaining_seconds: float


def fit(
    loss_fn: LossFn,
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
) -> tuple[TrainState, History]:
    """Trains on arrays that fit the device.

    Every epoch visits every example once, in an order drawn from the state's key and step; a last
    batch that is smaller is a step of its own. The epoch runs as scans of `CHUNK` steps over
    batches gathered on the device. Ctrl-C ends the run after the current chunk and gives what was
    done; a second one interrupts at once.

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

    Returns:
      The state after the last step and the learning curves: "epoch", "loss" and loss_fn's metrics
      averaged over the epoch, the same names with "validation_" in front, "seconds" (compilation
      apart) and "steps_per_second".

    Raises:
      ValueError: Arrays of different length, epochs below 1, a batch_size below 1 or above the
        number of examples, or one of observe and on_observed without the other.

    Example:
      >>> loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
      >>> tx = optax.sgd(0.5)
      >>> state = TrainState.create(jnp.zeros(()), tx)
      >>> state, history = fit(loss_fn, tx, state, jnp.ones(6), epochs=2, batch_size=4)
      >>> print(state.params, state.step, history.to_dict()["epoch"])
      1.0 4 [1, 2]
    """
    examples = _count(train)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not 1 <= batch_size <= examples:
        raise ValueError(
            f"batch_size must lie between 1 and the {examples} training examples, got {batch_size}"
        )
    if (observe is None) != (on_observed is None):
        raise ValueError("observe and on_observed go together: give both or none")
    step = local_step(loss_fn, tx, has_aux=has_aux, with_key=with_key)
    evaluate_fn = make_evaluate(loss_fn, has_aux=has_aux, with_key=with_key)

    def run_chunk(state: TrainState, data: Arrays, rows: jax.Array) -> tuple[TrainState, Any]:
        def one(state: TrainState, row: jax.Array) -> tuple[TrainState, Any]:
            state, metrics = step(state, jax.tree.map(lambda a: a[row], data))
            return state, (metrics, None if observe is None else observe(state))

        return jax.lax.scan(one, state, rows)

    def hand_out(observed: Any) -> None:
        if on_observed is not None:
            on_observed(jax.device_get(observed))

    train = jax.tree.map(jnp.asarray, train)
    compiled: dict[tuple[int, ...], Any] = {}
    shapes = {rows.shape for rows in _chunks(np.arange(examples), batch_size)}
    for shape in shapes:
        like = jax.ShapeDtypeStruct(shape, jnp.int32)
        compiled[shape] = jax.jit(run_chunk, donate_argnums=0).lower(state, train, like).compile()

    history = History()
    with _interrupt_flag() as interrupted:
        started = time.perf_counter()
        for epoch in range(1, epochs + 1):
            epoch_started = time.perf_counter()
            order = _shuffle(state, examples)
            metrics: list[tuple[int, Any]] = []
            observed: Any = None
            for rows in _chunks(order, batch_size):
                before = observed
                state, (chunk_metrics, observed) = compiled[rows.shape](state, train, rows)
                metrics.append((rows.size, chunk_metrics))
                if len(metrics) > 1:
                    # One chunk computes while the next is dispatched, never more.
                    jax.block_until_ready(metrics[-2][1])
                    hand_out(before)
                if interrupted.is_set():
                    break
            hand_out(observed)
            record = {"epoch": epoch, **_average(metrics)}
            seconds = time.perf_counter() - epoch_started
            if validation is not None:
                scores = evaluate_fn(state.params, validation)
                record |= {f"validation_{name}": value for name, value in scores.items()}
            steps = sum(np.shape(values["loss"])[0] for _, values in metrics)
            record |= {"seconds": seconds, "steps_per_second": steps / seconds}
            history = history.add(record)
            if on_epoch is not None:
                elapsed = time.perf_counter() - started
                remaining = elapsed / epoch * (epochs - epoch)
                on_epoch(Progress(epochs, record, steps / seconds, remaining))
            if interrupted.is_set():
                return state, History(history.records, interrupted=True)
    return state, history


def make_evaluate(
    loss_fn: LossFn, *, has_aux: bool = False, with_key: bool = False, batch_size: int = 1024
) -> Callable[[Any, Arrays], dict[str, float]]:
    """Compiles the mean of a loss and its metrics over all examples of some arrays.

    Args:
      loss_fn: As in `make_train_step`.
      has_aux: As in `make_train_step`.
      with_key: Whether loss_fn takes `key=`; it gets None.
      batch_size: Examples at a time.

    Returns:
      `evaluate(params, arrays)` -> "loss" and loss_fn's metrics as Python floats.

    Example:
      >>> evaluate = make_evaluate(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> evaluate(jnp.zeros(()), jnp.array([1.0, 3.0]))["loss"]
      5.0
    """

    @jax.jit
    def batch_means(params: Any, batch: Arrays) -> dict[str, jax.Array]:
        value = loss_fn(params, batch, **({"key": None} if with_key else {}))
        loss, aux = value if has_aux else (value, {})
        return {"loss": loss, **aux}

    def evaluate(params: Any, arrays: Arrays) -> dict[str, float]:
        examples = _count(arrays)
        parts = []
        for start in range(0, examples, batch_size):
            stop = min(start + batch_size, examples)
            batch = jax.tree.map(lambda a, rows=slice(start, stop): a[rows], arrays)
            means = batch_means(params, batch)
            parts.append((stop - start, jax.tree.map(lambda x: x[None], means)))
        return _average(parts)

    return evaluate


def _count(arrays: Arrays) -> int:
    sizes = {
        jax.tree_util.keystr(path): len(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        found = ", ".join(f"{path or 'array'}: {size}" for path, size in sizes.items()) or "none"
        raise ValueError(f"expected arrays of one length and at least one example, got {found}")
    return next(iter(sizes.values()))


def _shuffle(state: TrainState, examples: int) -> np.ndarray:
    """An order that the state's key and step decide; drawn on the host, where nothing compiles."""
    entropy = [*np.ravel(jax.random.key_data(state.key)).tolist(), int(state.step)]
    return np.random.default_rng(entropy).permutation(examples).astype(np.int32)


def _chunks(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Rows of the examples as `[steps, batch_size]`, `CHUNK` steps at a time, then the rest."""
    full = len(order) // batch_size * batch_size
    rows = order[:full].reshape(-1, batch_size)
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
    if full < len(order):
        yield order[None, full:]


def _average(parts: list[tuple[int, Any]]) -> dict[str, float]:
    """Mean over examples of per-step means `[steps]`, each part weighted by its examples."""
    total = sum(examples for examples, _ in parts)
    sums: dict[str, float] = {}
    for examples, values in parts:
        for name, value in values.items():
            mean = float(np.mean(np.asarray(value, np.float64)))
            sums[name] = sums.get(name, 0.0) + mean * examples / total
    return sums


@contextlib.contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into a flag, so that it never lands while a state is donated."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: Any) -> None:
        del number, frame
        flag.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
