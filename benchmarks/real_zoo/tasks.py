"""What the zoo's networks learn: small, made up or the digits, and learned in 200 steps."""

import functools
from typing import Any

import numpy as np

from benchmarks.real_zoo.network import Task
from vanishjax.training.data import load_dataset

VOCABULARY, LENGTH = 16, 16


def _split(*arrays: Any) -> tuple[Any, Any]:
    """Three quarters to train on, a quarter to judge by."""
    cut = 3 * len(arrays[0]) // 4
    return tuple(x[:cut] for x in arrays), tuple(x[cut:] for x in arrays)


def _entropy(labels: Any) -> float:
    shares = np.bincount(np.ravel(labels)) / np.size(labels)
    shares = shares[shares > 0]
    return float(-np.sum(shares * np.log(shares)))


def _variance(targets: Any) -> float:
    return float(np.mean(np.var(targets, axis=0)))


TOPICS = 5


def _tokens() -> np.ndarray:
    """The first token tells the topic, and that tells which token follows which."""
    rng = np.random.default_rng(0)
    words = VOCABULARY - TOPICS
    successors = np.stack([rng.permutation(words) for _ in range(TOPICS)])
    topics, tokens = rng.integers(0, TOPICS, 1280), np.zeros((1280, LENGTH + 1), np.int32)
    tokens[:, 0], tokens[:, 1] = words + topics, rng.integers(0, words, 1280)
    for place in range(1, LENGTH):
        tokens[:, place + 1] = successors[topics, tokens[:, place]]
        other = rng.random(1280) < 0.1
        tokens[other, place + 1] = rng.integers(0, words, other.sum())
    return tokens


def _chains() -> np.ndarray:
    """Each token has three likely successors."""
    rng = np.random.default_rng(0)
    successors = np.stack([rng.permutation(VOCABULARY)[:3] for _ in range(VOCABULARY)])
    tokens = rng.integers(0, VOCABULARY, (1280, LENGTH))
    for place in range(LENGTH - 1):
        which = rng.choice(3, len(tokens), p=(0.8, 0.15, 0.05))
        tokens[:, place + 1] = successors[tokens[:, place], which]
    return tokens.astype(np.int32)


@functools.cache
def language() -> Task:
    """Sequences in which the first token says which token follows which."""
    train, test = _split(_tokens())
    return Task(train, test, (_entropy(test[0][:, 1:]),))


@functools.cache
def masked_language() -> Task:
    """A fifth of the tokens is to be told from their neighbors."""
    tokens = _chains()
    hidden = np.random.default_rng(1).random(tokens.shape) < 0.2
    hidden[:, 3] = True
    train, test = _split(tokens, hidden)
    return Task(train, test, (_entropy(test[0][test[1]]),))


@functools.cache
def _digits() -> Any:
    data = load_dataset("digits", validation_split=0.2, seed=0)
    return tuple((part.inputs, part.labels) for part in (data.train, data.test))


@functools.cache
def digits() -> Task:
    """Handwritten digits, 64 pixels, standardized."""
    train, test = _digits()
    return Task(train, test, (_entropy(test[1]),))


@functools.cache
def reconstruction() -> Task:
    """The digits' pixels themselves."""
    (train, _), (test, _) = _digits()
    return Task((train,), (test,), (_variance(test),))


@functools.cache
def imitation() -> Task:
    """The same, through what a frozen network makes of it: chance is the gray image's error."""
    (train, _), (test, _) = _digits()
    return Task((train,), (test,), (float(np.mean(test**2)),))


@functools.cache
def matching() -> Task:
    """The upper and the lower halves of the digits, to be told which belong together."""
    (train, _), (test, _) = _digits()
    test = test[:64]
    return Task((train[:, :32], train[:, 32:]), (test[:, :32], test[:, 32:]), (np.log(64.0),))


@functools.cache
def decisions() -> Task:
    """The digit, and a number that depends on the pixels."""
    parts = []
    weights = np.random.default_rng(2).standard_normal((64, 2)) / 8
    for inputs, labels in _digits():
        returns = np.tanh(inputs @ weights).sum(1).astype(np.float32)
        parts.append((inputs, labels, returns))
    train, test = parts
    return Task(train, test, (_entropy(test[1]), _variance(test[2])))


@functools.cache
def running_sum() -> Task:
    """Twenty steps of two channels; the sum of the first channel where the second one says so."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal((1280, 20, 1))
    marked = rng.random((1280, 20, 1)) < 0.2
    sums = (values * marked).sum((1, 2)) / 2
    inputs = np.concatenate([values, marked], -1)
    train, test = _split(inputs.astype(np.float32), sums.astype(np.float32))
    return Task(train, test, (_variance(test[1]),))


@functools.cache
def swirl() -> Task:
    """Points of the plane, and where a turning flow takes them."""
    rng = np.random.default_rng(4)
    points = rng.standard_normal((1024, 2))
    angle = 2 * np.exp(-0.3 * (points**2).sum(1))
    c, s = np.cos(angle), np.sin(angle)
    ends = np.stack([c * points[:, 0] - s * points[:, 1], s * points[:, 0] + c * points[:, 1]], 1)
    train, test = _split(points.astype(np.float32), ends.astype(np.float32))
    return Task(train, test, (_variance(test[1]),))


@functools.cache
def poisson() -> Task:
    """Points of the interval (-1, 1), for u'' = -sin(pi x), u(-1) = u(1) = 0."""
    rng = np.random.default_rng(5)
    points = rng.uniform(-1, 1, (512, 1)).astype(np.float32)
    train, test = _split(points)
    return Task(train, test, (float(np.mean(np.sin(np.pi * test[0]) ** 2)),))


@functools.cache
def moons() -> Task:
    """Points on two half circles; what is learned is their density."""
    rng = np.random.default_rng(6)
    angle, which = rng.uniform(0, np.pi, 1024), rng.integers(0, 2, 1024)
    x = np.where(which, 1 - np.cos(angle), np.cos(angle))
    y = np.where(which, 0.5 - np.sin(angle), np.sin(angle))
    points = np.stack([x, y], 1) + 0.08 * rng.standard_normal((1024, 2))
    points = (points - points.mean(0)) / points.std(0)
    train, test = _split(points.astype(np.float32))
    # The best Gaussian with independent axes.
    return Task(train, test, (float(0.5 * np.log(2 * np.pi) + 0.5),))


@functools.cache
def graphs() -> Task:
    """Rings of twelve nodes with a few chords; a node's class is that of its neighborhood."""
    rng = np.random.default_rng(7)
    count, nodes = 640, 12
    features = rng.standard_normal((count, nodes, 4))
    linked = np.zeros((count, nodes, nodes), bool)
    for step in (0, 1):
        linked |= np.roll(np.eye(nodes, dtype=bool), step, 1)
    linked |= rng.random(linked.shape) < 0.03
    linked |= linked.transpose(0, 2, 1)
    matrix = linked / linked.sum(-1, keepdims=True)
    classes = (matrix @ features + features)[..., :3].argmax(-1)
    train, test = _split(
        features.astype(np.float32), matrix.astype(np.float32), classes.astype(np.int32)
    )
    return Task(train, test, (_entropy(test[2]),))
