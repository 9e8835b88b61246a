"""How deep each optimizer trains: a grid of optimizers x depths, measured on real data.

A cell trains one optimizer at one depth, with every learning rate of its grid and every seed at
once, as one compiled program. The rate is chosen by accuracy on validation data; the accuracy
that is reported is the test data's.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from vanishjax import losses, numerics
from vanishjax.catalog import CONTENDERS
from vanishjax.compilation import RUNS_ONCE
from vanishjax.health.probe import probe
from vanishjax.initializers import center_biases, initialization
from vanishjax.layers import Layers, find_layers
from vanishjax.models import MLP, Activation, Residual
from vanishjax.optimizers.named import named_optimizer
from vanishjax.training import TrainState, local_step, scan_steps
from vanishjax.training.batches import rows_of

Arrays = tuple[Any, Any]


# What is left of the learning rate at the end of a run, with `Grid.decay`.
_LAST_RATE = 0.02
# The axis of devices over which runs are divided.
_RUNS = "runs"


@dataclasses.dataclass(frozen=True)
class Grid:
    """What to compare, and how.

    Attributes:
      optimizers: Keys of `catalog.CONTENDERS`.
      depths: Numbers of hidden layers.
      width: Width of every hidden layer.
      hidden: Widths of the hidden layers of the one network to compare on, instead of `width`;
        `depths` is their number then.
      activation: Of every hidden layer.
      kernel_init: A key of `initializers.INITIALIZERS`; the critical ones with centered biases.
      residual: Skip connections, as in `mlp_problem`.
      learning_rates: Rates to choose from, for all; None takes each contender's own.
      seeds: One run each: they draw the parameters and the order of the examples.
      epochs: Passes over the training data.
      decay: Whether the learning rate falls linearly to 2 % of itself over the run.
      batch_size: Examples a step; a remainder is left to the next shuffle.
      trainable_accuracy: A depth counts as trainable if the mean test accuracy reaches it.

    Example:
      >>> Grid(optimizers=("adam",), depths=(2, 4)).depths
      (2, 4)
    """

    optimizers: tuple[str, ...] = (
        "sgd",
        "nesterov",
        "adam",
        "nadam",
        "rmsprop",
        "lion",
        "muon",
        "deep_muon",
    )
    depths: tuple[int, ...] = (2, 4, 6, 8, 12, 16)
    width: int = 32
    hidden: tuple[int, ...] | None = None
    activation: str | Activation = "sigmoid"
    kernel_init: str = "lecun"
    residual: Residual | None = None
    learning_rates: tuple[float, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    decay: bool = False
    batch_size: int = 64
    trainable_accuracy: float = 0.5


class Start(NamedTuple):
    """Networks of one depth before training, shared by all optimizers; leaves are `[seeds, ...]`.

    `accuracy` is compiled once for them all: from parameters `[rates, seeds, ...]` and data to
    `[rates, seeds]`.
    """

    predict_fn: Callable[[Any, Any], jax.Array]
    accuracy: Callable[[Any, Arrays], jax.Array]
    params: Any
    first_layer_gradient: jax.Array
    last_layer_gradient: jax.Array
    layers: Layers


def draw_networks(depth: int, grid: Grid, train: Arrays, classes: int) -> Start:
    """Draws a network of a depth for every seed and measures its gradient.

    Args:
      depth: Number of hidden layers.
      grid: The other settings.
      train: Inputs `[n, features]` and integer labels `[n]`; the first batch gives the gradient.
      classes: Number of classes.

    Returns:
      The networks, and the RMS of their first and last layer's kernel gradient, `[seeds]`.

    Example:
      >>> data = (np.eye(8, dtype=np.float32), np.arange(8) % 2)
      >>> start = draw_networks(3, Grid(seeds=(0, 1)), data, classes=2)
      >>> start.params["hidden_stack"]["kernel"].shape, start.first_layer_gradient.shape
      ((2, 2, 32, 32), (2,))
    """
    kernel_init, bias_init, centers = initialization(grid.kernel_init, grid.activation)
    hidden = grid.hidden or (grid.width,) * depth
    model = MLP(
        hidden,
        classes,
        activation=grid.activation,
        kernel_init=kernel_init,
        bias_init=bias_init,
        residual=grid.residual,
        # A stack of one layer is no shorter to compile.
        scan=depth > 2 and len(set(hidden)) == 1,
    )
    batch = jax.tree.map(lambda a: a[: grid.batch_size], train)

    def predict_fn(params: Any, inputs: jax.Array) -> jax.Array:
        return model.apply({"params": params}, inputs)

    def init(seed: Any) -> Any:
        return model.init(jax.random.key(seed), batch[0][:1])["params"]

    loss_fn = _loss(predict_fn)
    layers = find_layers(jax.eval_shape(init, 0), loss_fn, batch)

    def draw(seed: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        params = init(seed)
        if centers and grid.residual is None:
            params = center_biases(params, grid.activation, layers)
        gradient = jax.grad(loss_fn)(params, batch)
        first, last = gradient["hidden_0"]["kernel"], gradient["output"]["kernel"]
        return params, numerics.rms(first), numerics.rms(last)

    # Not under vmap: random numbers for one network compile three times as fast.
    draw_one = jax.jit(draw, compiler_options=RUNS_ONCE)
    drawn = [draw_one(jnp.uint32(seed)) for seed in grid.seeds]

    def accuracy(params: Any, data: Arrays) -> jax.Array:
        outputs = predict_fn(params, data[0])
        # The largest of NaNs is the first class, which would pass for an answer.
        finite = jnp.isfinite(outputs).all()
        return jnp.where(finite, losses.accuracy(outputs, data[1]), jnp.nan)

    every_accuracy = jax.jit(jax.vmap(jax.vmap(accuracy, (0, None)), (0, None)))
    params, first, last = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    return Start(predict_fn, every_accuracy, params, first, last, layers)


def train_cell(
    optimizer: str,
    start: Start,
    grid: Grid,
    train: Arrays,
    validation: Arrays,
    test: Arrays,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains one optimizer at one depth with every rate and seed, in one compiled program.

    The runs are divided among devices: as many of them as divide the number of runs.

    Args:
      optimizer: A key of `catalog.CONTENDERS`.
      start: The networks, from `draw_networks`.
      grid: The other settings.
      train: Inputs `[n, features]` and integer labels `[n]`.
      validation: What the learning rate is chosen on.
      test: What is reported.
      devices: Where to run; all devices if None.

    Returns:
      A JSON-able mapping: the chosen "learning_rate", "validation_accuracy" and "test_accuracy"
      at that rate (lists, one entry a seed), and "rates", every rate's mean validation accuracy.
      An accuracy is NaN where the training diverged.

    Example:
      >>> data = (np.eye(8, dtype=np.float32), np.arange(8) % 2)
      >>> grid = Grid(epochs=1, batch_size=4, seeds=(0,), width=4)
      >>> start = draw_networks(2, grid, data, classes=2)
      >>> sorted(train_cell("adam", start, grid, data, data, data))
      ['learning_rate', 'rates', 'test_accuracy', 'validation_accuracy']
    """
    rates = grid.learning_rates or CONTENDERS[optimizer].rates
    train = jax.tree.map(jnp.asarray, train)
    orders = np.stack([_example_order(seed, grid, len(train[0])) for seed in grid.seeds])
    steps = orders.shape[1]

    def run(rate: jax.Array, params: Any, order: jax.Array) -> Any:
        falling = optax.linear_schedule(rate, _LAST_RATE * rate, steps)
        tx = named_optimizer(
            optimizer,
            falling if grid.decay else rate,
            layers=start.layers,
            total_steps=steps,
            activation=grid.activation,
        )
        step = local_step(_loss(start.predict_fn), tx)
        state = TrainState.create(params, tx)
        end, _ = scan_steps(step, state, order, functools.partial(rows_of, train))
        return end.params

    def numbered(number: jax.Array, rates: jax.Array, params: Any, orders: jax.Array) -> Any:
        rate, seed = number // len(orders), number % len(orders)
        return run(rates[rate], jax.tree.map(lambda a: a[seed], params), orders[seed])

    runs = len(rates) * len(orders)
    mesh = Mesh(_dividing(runs, jax.devices() if devices is None else devices), (_RUNS,))
    every_run = jax.jit(
        jax.shard_map(
            jax.vmap(numbered, (0, None, None, None)),
            mesh=mesh,
            in_specs=(PartitionSpec(_RUNS), PartitionSpec(), PartitionSpec(), PartitionSpec()),
            out_specs=PartitionSpec(_RUNS),
            # The runs have nothing to do with one another: no collective whose sums it could check.
            check_vma=False,
        )
    )
    ends = every_run(jnp.arange(runs), jnp.array(rates), start.params, jnp.asarray(orders))
    ends = jax.tree.map(lambda a: a.reshape(len(rates), len(orders), *a.shape[1:]), ends)
    on_validation, on_test = (
        np.asarray(start.accuracy(ends, data), np.float64) for data in (validation, test)
    )
    scores = on_validation.mean(axis=1)
    best = int(np.argmax(np.nan_to_num(scores, nan=-1.0)))
    return {
        "learning_rate": rates[best],
        "validation_accuracy": on_validation[best].tolist(),
        "test_accuracy": on_test[best].tolist(),
        "rates": {f"{rate:g}": float(score) for rate, score in zip(rates, scores, strict=True)},
    }


def _dividing(runs: int, devices: Sequence[jax.Device]) -> list[jax.Device]:
    """As many of the devices as divide the number of runs."""
    most = max(n for n in range(1, len(devices) + 1) if runs % n == 0)
    return list(devices[:most])


def predicted_log_chi(start: Start, grid: Grid, train: Arrays) -> float:
    """How much of the gradient's energy reaches the first layer of new networks, in nats.

    Args:
      start: The networks, from `draw_networks`.
      grid: The other settings.
      train: Inputs `[n, features]` and integer labels `[n]`; the first batch is looked at.

    Returns:
      `probe`'s sum of ln chi, mean over seeds.

    Example:
      >>> data = (np.eye(8, dtype=np.float32), np.arange(8) % 2)
      >>> grid = Grid(seeds=(0, 1))
      >>> print(round(predicted_log_chi(draw_networks(16, grid, data, 2), grid, data)))
      -47
    """
    batch = jax.tree.map(lambda a: a[: grid.batch_size], train)
    loss_fn = _loss(start.predict_fn)
    networks = [jax.tree.map(lambda a, i=i: a[i], start.params) for i in range(len(grid.seeds))]
    return float(np.mean([probe(loss_fn, params, batch).sum_log_chi for params in networks]))


def measure(
    grid: Grid,
    train: Arrays,
    validation: Arrays,
    test: Arrays,
    classes: int,
    *,
    done: Collection[tuple[str, int]] = (),
    predicts: bool = False,
) -> Iterator[dict[str, Any]]:
    """Measures the grid cell by cell, depth by depth.

    Args:
      grid: What to compare.
      train: Inputs `[n, features]` and integer labels `[n]`.
      validation: What learning rates are chosen on.
      test: What is reported.
      classes: Number of classes.
      done: Optimizers and depths to leave out, as pairs.
      predicts: Whether to say what theory makes of each depth.

    Yields:
      `train_cell`'s mapping with "optimizer", "depth", the RMS of the first and of the last
      layer's kernel gradient at initialization (mean over seeds), "sum_log_chi" if it `predicts`,
      "steps" and "seconds" (compilation included).

    Raises:
      ValueError: As `check_grid`.

    Example:
      >>> data = (np.eye(8, dtype=np.float32), np.arange(8) % 2)
      >>> grid = Grid(("sgd", "adam"), (2,), width=4, epochs=1, batch_size=4, seeds=(0,))
      >>> [(cell["optimizer"], cell["steps"]) for cell in measure(grid, data, data, data, 2)]
      [('sgd', 2), ('adam', 2)]
    """
    check_grid(grid, len(train[0]), classes)
    for depth in grid.depths:
        left = [name for name in grid.optimizers if (name, depth) not in done]
        if not left:
            continue
        start = draw_networks(depth, grid, train, classes)
        common: dict[str, Any] = {
            "first_layer_gradient": float(jnp.mean(start.first_layer_gradient)),
            "last_layer_gradient": float(jnp.mean(start.last_layer_gradient)),
        }
        if predicts:
            common["sum_log_chi"] = predicted_log_chi(start, grid, train)
        for optimizer in left:
            started = time.perf_counter()
            cell = train_cell(optimizer, start, grid, train, validation, test)
            yield {
                "optimizer": optimizer,
                "depth": depth,
                **cell,
                **common,
                "steps": len(train[0]) // grid.batch_size * grid.epochs,
                "seconds": time.perf_counter() - started,
            }


def check_grid(grid: Grid, examples: int, classes: int) -> None:
    """Raises ValueError if a grid can't be measured on data.

    That is an unknown optimizer or initializer, an activation without a critical point for a
    critical one, other depths than `hidden` has layers, fewer than two classes, or a batch larger
    than the training data.

    Example:
      >>> check_grid(Grid(activation="softplus", kernel_init="critical_normal"), 1000, 10)
      Traceback (most recent call last):
      ...
      ValueError: softplus - 0.693147 has no critical point: where chi = 1 its variance isn't stable
    """
    for name in grid.optimizers:
        if name not in CONTENDERS:
            raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(CONTENDERS)}")
        if CONTENDERS[name].plain and grid.residual is not None:
            raise ValueError(f"{name} is for chains without skip connections, not {grid.residual}")
    if grid.hidden is not None and grid.depths != (len(grid.hidden),):
        raise ValueError(
            f"depths must be ({len(grid.hidden)},), the number of hidden layers, got {grid.depths}"
        )
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    if grid.batch_size > examples:
        raise ValueError(
            f"batch_size must be at most the {examples} training examples, got {grid.batch_size}"
        )
    initialization(grid.kernel_init, grid.activation)


def _loss(predict_fn: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Arrays], jax.Array]:
    return lambda params, batch: losses.cross_entropy(predict_fn(params, batch[0]), batch[1])


def _example_order(seed: int, grid: Grid, examples: int) -> np.ndarray:
    """The rows of every batch `[epochs * steps, batch_size]`, shuffled anew each epoch."""
    rng = np.random.default_rng(seed)
    steps = examples // grid.batch_size
    orders = [rng.permutation(examples)[: steps * grid.batch_size] for _ in range(grid.epochs)]
    return np.stack(orders).reshape(-1, grid.batch_size).astype(np.int32)


def trainable_depth(cells: list[dict[str, Any]], accuracy: float) -> dict[str, int]:
    """The deepest network of each optimizer whose mean test accuracy reaches `accuracy`; else 0.

    Example:
      >>> cells = [{"optimizer": "adam", "depth": d, "test_accuracy": [a]}
      ...          for d, a in [(2, 0.9), (4, 0.7), (8, 0.1)]]
      >>> trainable_depth(cells, 0.5)
      {'adam': 4}
    """
    deepest: dict[str, int] = {}
    for cell in cells:
        # JSON has no NaN: a cell that was read from it has None where training diverged.
        accuracies = [math.nan if value is None else value for value in cell["test_accuracy"]]
        reached = cell["depth"] if math.fsum(accuracies) / len(accuracies) >= accuracy else 0
        deepest[cell["optimizer"]] = max(deepest.get(cell["optimizer"], 0), reached)
    return deepest


def predicted_depth(cells: list[dict[str, Any]], reach: float) -> int:
    """The deepest network whose gradient stays within `reach` nats by prediction; else 0.

    Example:
      >>> predicted_depth([{"depth": d, "sum_log_chi": -2.9 * d} for d in (2, 4, 8)], 8.4)
      2
    """
    known = [cell for cell in cells if cell["sum_log_chi"] is not None]
    within = [cell["depth"] for cell in known if abs(cell["sum_log_chi"]) <= reach]
    return max(within, default=0)
