"""Training on batches that come from elsewhere: lists, loaders, functions of the epoch."""

import signal

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vanishjax as vj
from vanishjax.training import checkpoint_steps, feeds, make_evaluate

KINDS = [None, "jit", "shard_map", "pmap"]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5], np.float32) + 0.25
TX = vj.adam(0.05)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 50, 8)]  # six of eight and one of two


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


PROBLEM = vj.Problem(loss_fn, {"w": jnp.ones(3), "b": jnp.zeros(())}, TX)
STEP = jax.jit(lambda state, batch: vj.training.local_step(PROBLEM)(state, batch))


def start():
    return vj.TrainState.create(PROBLEM)


def bare(epochs):
    """The loop that everybody writes: parameters, and the mean loss of each epoch."""
    state, means = start(), []
    for batches in epochs:
        total = examples = 0
        for batch in batches:
            state, metrics = STEP(state, batch)
            total += float(metrics["loss"]) * len(batch[0])
            examples += len(batch[0])
        means.append(total / examples)
    return state.params, means


def check(found, epochs):
    state, history = found
    params, means = bare(epochs)
    chex.assert_trees_all_close(jax.device_get(state.params), params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.to_dict()["loss"], means, rtol=1e-5)


class Loader:
    """A loader with an order of its own for every epoch, which it can't tell."""

    def __init__(self, batches=BATCHES):
        self.batches, self.epochs = batches, 0

    def __iter__(self):
        self.epochs += 1
        return iter(self.batches[::-1] if self.epochs % 2 else self.batches)


class Tensor:
    """Just as much of a torch tensor as there is to see: it must be detached and copied first."""

    def __init__(self, array, ready=False):
        self.array, self.ready = array, ready
        self.shape, self.dtype = array.shape, f"torch.{array.dtype}"

    def detach(self):
        return Tensor(self.array)

    def cpu(self):
        return Tensor(self.array, ready=True)

    def __array__(self, dtype=None, copy=None):
        assert self.ready, "a tensor that requires grad, or lies on a GPU, is no array"
        return self.array


def reversed_later(epoch):
    return iter(BATCHES if epoch == 1 else BATCHES[::-1])


def indices(count):
    """Examples of a Grain source."""
    return grain.MapDataset.range(count).map(lambda i: (X[i], Y[i]))


@pytest.mark.parametrize(
    ("train", "epochs"),
    [
        (BATCHES, [BATCHES] * 3),
        (Loader(), [BATCHES[::-1], BATCHES, BATCHES[::-1]]),
        (reversed_later, [BATCHES, BATCHES[::-1], BATCHES[::-1]]),
        (lambda epoch: BATCHES[epoch:], [BATCHES[1:], BATCHES[2:], BATCHES[3:]]),
        ([[Tensor(x), Tensor(y)] for x, y in BATCHES], [BATCHES] * 3),
        (indices(50).batch(8), [BATCHES] * 3),
        (indices(50).to_iter_dataset().batch(8), [BATCHES] * 3),
    ],
    ids=["list", "loader", "function", "lists", "tensors", "grain", "grain iter"],
)
def test_any_source_of_batches_is_the_bare_loop(train, epochs):
    check(vj.fit(PROBLEM, start(), train, epochs=3), epochs)


def test_a_loader_of_torch_is_the_bare_loop():
    data = pytest.importorskip("torch.utils.data", exc_type=ImportError)
    from_numpy = pytest.importorskip("torch").from_numpy
    examples = data.TensorDataset(from_numpy(np.array(X)), from_numpy(np.array(Y)))
    train = data.DataLoader(examples, batch_size=8)
    check(vj.fit(PROBLEM, start(), train, epochs=2), [BATCHES] * 2)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_on_many_devices(kind, accumulate):
    found = vj.fit(PROBLEM, start(), BATCHES, epochs=2, parallel=kind, accumulate=accumulate)
    check(found, [BATCHES] * 2)


def test_the_two_forms_are_one():
    one, _ = vj.fit(PROBLEM, start(), BATCHES, epochs=1)
    two, _ = vj.fit(loss_fn, TX, start(), BATCHES, epochs=1)
    three, _ = vj.fit(PROBLEM, state=start(), train=BATCHES, epochs=1)
    chex.assert_trees_all_equal(one.params, two.params, three.params)
    arrays, _ = vj.fit(PROBLEM, start(), (X, Y), epochs=1, batch_size=8)
    again, _ = vj.fit(loss_fn, TX, start(), (X, Y), epochs=1, batch_size=8)
    chex.assert_trees_all_equal(arrays.params, again.params)


@pytest.mark.parametrize(
    "validation",
    [(X, Y), BATCHES, Loader(), lambda epoch: iter(BATCHES)],
    ids=["arrays", "list", "loader", "function"],
)
@pytest.mark.parametrize("train", [BATCHES, (X, Y)], ids=["batches", "arrays"])
def test_validation_on_arrays_or_batches(train, validation):
    size = {"batch_size": 10} if train is not BATCHES else {}
    state, history = vj.fit(PROBLEM, start(), train, epochs=2, validation=validation, **size)
    np.testing.assert_allclose(
        history.last["validation_loss"], loss_fn(state.params, (X, Y)), rtol=1e-5
    )
    found = make_evaluate(PROBLEM)(state, validation)
    np.testing.assert_allclose(found["loss"], history.last["validation_loss"], rtol=1e-6)


def test_a_list_of_arrays_is_a_tree_where_there_is_a_batch_size():
    problem = vj.Problem(lambda p, b: loss_fn(p, (b[0], b[1])), PROBLEM.params, TX)
    arguments = {"epochs": 2, "batch_size": 8}
    state, history = vj.fit(problem, start(), [X, Y], validation=[X, Y], **arguments)
    other, _ = vj.fit(problem, start(), (X, Y), **arguments)
    chex.assert_trees_all_equal(state.params, other.params)
    np.testing.assert_allclose(
        history.last["validation_loss"], loss_fn(state.params, (X, Y)), rtol=1e-5
    )
    # And batches without one.
    mean = vj.Problem(lambda w, x: jnp.mean((w - x) ** 2), jnp.zeros(()), vj.sgd(0.5))
    batches = [np.full(2, 1.0, np.float32), np.full(4, 3.0, np.float32)]
    state, history = vj.fit(mean, vj.TrainState.create(mean), batches, epochs=1, validation=batches)
    np.testing.assert_allclose(state.params, 3.0)
    np.testing.assert_allclose(history.last["loss"], (2 * 1 + 4 * 4) / 6)
    np.testing.assert_allclose(history.last["validation_loss"], 2 * 4 / 6)


def test_what_is_observed_is_every_step_in_order():
    seen = []
    vj.fit(
        PROBLEM,
        start(),
        BATCHES * 10,
        epochs=2,
        observe=lambda state: (state.step, state.params["w"]),
        on_observed=seen.append,
    )
    assert len(seen) == 4  # fifty steps at a time
    np.testing.assert_array_equal(np.concatenate([steps for steps, _ in seen]), range(1, 141))
    assert seen[0][1].shape == (50, 3)


def test_the_next_batch_is_loaded_while_one_computes(monkeypatch):
    drawn, awaited = [], []

    def loader(times):
        for batch in BATCHES * times:
            drawn.append(None)
            yield batch

    wait = jax.block_until_ready

    def recorded(tree):
        awaited.append(len(drawn))
        return wait(tree)

    monkeypatch.setattr(jax, "block_until_ready", recorded)
    vj.fit(PROBLEM, start(), lambda _: loader(10), epochs=1)
    # Small batches are many under way, and awaited some at a time.
    assert 0 < len(awaited) < 14
    drawn.clear()
    awaited.clear()
    monkeypatch.setattr(feeds, "_BYTES_AHEAD", 1)
    vj.fit(PROBLEM, start(), loader, epochs=1)
    # When a step is awaited, the next one runs already, and its batch is the last that was drawn:
    # two steps at most are under way, and no batch is held that isn't needed.
    assert awaited == [2, 3, 4, 5, 6, 7]


# --- what can't be


@pytest.mark.parametrize(
    ("train", "arguments", "error", "message"),
    [
        (lambda: iter(BATCHES), {"epochs": 2}, ValueError, "gives its batches only once"),
        (lambda: (b for b in BATCHES), {"epochs": 2}, ValueError, "is a generator, which gives"),
        (lambda: BATCHES, {"batch_size": 4, "validation": iter(BATCHES)}, ValueError, None),
        (lambda: (X, Y), {}, ValueError, "train is arrays: give batch_size"),
        (lambda: tuple(BATCHES), {}, ValueError, "batches come in a list"),
        (lambda: X, {}, ValueError, "train is arrays: give batch_size"),
        (lambda: {"x": X}, {}, ValueError, "train is arrays: give batch_size"),
        (lambda: Loader(), {"batch_size": 4}, ValueError, "is a Loader, whose batches have a size"),
        (lambda: reversed_later, {"batch_size": 4}, ValueError, "leave batch_size out"),
        (list, {}, ValueError, "train gave no batch in epoch 1"),
        (lambda: lambda _: iter(()), {}, ValueError, "train gave no batch in epoch 1"),
        (lambda: [(X[:0], Y[:0])], {}, ValueError, "batch 1 of epoch 1 of train has no example"),
        (lambda: 3.0, {}, ValueError, "give batch_size"),
        (lambda: object(), {}, TypeError, "an iterable of batches or a function .* got object"),
        (
            lambda: BATCHES,
            {"validation": iter(BATCHES), "epochs": 2},
            ValueError,
            "validation is a",
        ),
    ],
)
def test_what_can_not_be_trained_on_is_named(train, arguments, error, message):
    with pytest.raises(error, match=message):
        vj.fit(PROBLEM, start(), train(), **{"epochs": 1, **arguments})


def test_a_function_that_gives_a_used_up_iterator_is_named():
    once = iter(BATCHES)
    with pytest.raises(ValueError, match=r"train gave no batch in epoch 2: .* used up"):
        vj.fit(PROBLEM, start(), lambda epoch: once, epochs=2)


def test_an_iterator_is_good_for_one_epoch():
    check(vj.fit(PROBLEM, start(), iter(BATCHES), epochs=1, validation=iter(BATCHES)), [BATCHES])


def test_an_error_of_the_loader_comes_through():
    def broken(epoch):
        yield BATCHES[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        vj.fit(PROBLEM, start(), broken, epochs=1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- going on


class Interrupting:
    """Ctrl-C while a given batch is drawn; the position is the number of batches drawn."""

    def __init__(self, at=None, can_tell=True, kind=dict):
        self.at, self.can_tell, self.kind, self.drawn = at, can_tell, kind, []

    def __iter__(self):
        return (Telling if self.can_tell else Silent)(self)


class Silent:
    def __init__(self, source):
        self.source, self.next = source, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == len(BATCHES):
            raise StopIteration
        self.source.drawn.append(self.next)
        if self.source.at == len(self.source.drawn):
            signal.raise_signal(signal.SIGINT)
        self.next += 1
        return BATCHES[self.next - 1]


class Telling(Silent):
    def get_state(self):
        return {"next": self.next} if self.source.kind is dict else bytes([self.next])

    def set_state(self, state):
        self.next = state["next"] if self.source.kind is dict else state[0]


def go_on(train, folder, epochs=3, resume=True, **kept):
    return vj.fit(
        PROBLEM,
        start(),
        train,
        epochs=epochs,
        checkpoints=vj.Checkpoints(folder, resume=resume, **kept),
    )


def comparable(state, history):
    curves = {name: v for name, v in history.to_dict().items() if "second" not in name}
    return jax.device_get(state.params), int(state.step), curves


WHOLE = comparable(*vj.fit(PROBLEM, start(), BATCHES, epochs=3))


@pytest.mark.parametrize("kind", [dict, bytes])
@pytest.mark.parametrize("at", [1, 3, 7, 8, 11, 14, 21])
def test_a_run_goes_on_at_the_same_batch(tmp_path, at, kind):
    half, history = go_on(Interrupting(at, kind=kind), tmp_path, resume=False)
    assert checkpoint_steps(tmp_path)[-1] == int(half.step)
    assert history.interrupted == (int(half.step) < 21)
    source = Interrupting(kind=kind)
    chex.assert_trees_all_equal(comparable(*go_on(source, tmp_path)), WHOLE)
    # No batch is drawn twice.
    assert len(source.drawn) == 21 - int(half.step)


@pytest.mark.parametrize("every", [1, 3, 7])
def test_checkpoints_of_every_few_steps_are_exact(tmp_path, every):
    steps = []

    def stopped(progress):
        steps.extend(checkpoint_steps(tmp_path))
        signal.raise_signal(signal.SIGINT)

    vj.fit(
        PROBLEM,
        start(),
        Interrupting(),
        epochs=3,
        on_epoch=stopped,
        checkpoints=vj.Checkpoints(tmp_path, every=every, keep=100),
    )
    assert steps == list(range(every, 7, every))
    chex.assert_trees_all_equal(comparable(*go_on(Interrupting(), tmp_path, every=every)), WHOLE)


def test_a_list_and_a_function_skip_what_was_done(tmp_path):
    for name, source in (("list", BATCHES), ("function", lambda epoch: iter(BATCHES))):
        go_on(lambda epoch: Interrupting(4, can_tell=False), tmp_path / name, resume=False)
        assert 0 < checkpoint_steps(tmp_path / name)[-1] < 7
        found = comparable(*go_on(source, tmp_path / name))
        chex.assert_trees_all_equal(found, WHOLE)


def test_a_loader_that_can_not_tell_says_so(tmp_path):
    go_on(Interrupting(4, can_tell=False), tmp_path, resume=False)
    done = checkpoint_steps(tmp_path)[-1]
    with pytest.raises(ValueError, match=f"after batch {done}, and a Loader can't go on"):
        go_on(Loader(), tmp_path)
    with pytest.raises(ValueError, match=f"after batch {done}, but train gives only 1"):
        go_on(BATCHES[:1], tmp_path)
    # Between epochs there is nothing to find again.
    go_on(Loader(), tmp_path / "between", epochs=1)
    state, history = go_on(Loader(), tmp_path / "between", epochs=2)
    assert (int(state.step), len(history.records)) == (14, 2)


def test_grain_goes_on_at_the_same_batch(tmp_path):
    def dataset(interrupt_at=None):
        count = iter(range(1000))

        def example(i):
            if next(count) == interrupt_at:
                signal.raise_signal(signal.SIGINT)
            return X[i], Y[i]

        options = grain.ReadOptions(num_threads=0)
        shuffled = grain.MapDataset.range(50).shuffle(seed=3).map(example)
        return shuffled.to_iter_dataset(options).batch(8)

    whole = comparable(*vj.fit(PROBLEM, start(), dataset(), epochs=3))
    half, _ = go_on(dataset(interrupt_at=77), tmp_path, resume=False)
    assert 7 < int(half.step) < 14
    chex.assert_trees_all_equal(comparable(*go_on(dataset(), tmp_path)), whole)


def test_another_kind_of_data_is_another_run(tmp_path):
    go_on(BATCHES, tmp_path, epochs=1, resume=False)
    with pytest.raises(ValueError, match="was saved with batch_size none, not 8"):
        vj.fit(
            PROBLEM,
            start(),
            (X, Y),
            epochs=2,
            batch_size=8,
            checkpoints=vj.Checkpoints(tmp_path, resume=True),
        )
