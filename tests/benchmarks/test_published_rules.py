"""Other tools' rules: each fires beyond its published threshold and not before it."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import published_rules as rules
from benchmarks.networks import mlp

ALIVE = np.linspace(-1, 1.5, 200)[:, None] * np.ones(10)
HEALTHY = rules.Observation(
    kernels=np.array([True, False, True]),
    mean_gradient=np.full(3, 1e-3),
    mean_absolute_gradient=np.full(3, 1e-2),
    gradient_norm=np.ones(3),
    zero_share=0.1,
    mean_weight=np.full(3, 0.1),
    activations=[
        ("relu", ALIVE, np.maximum(ALIVE, 0)),
        ("tanh", ALIVE, np.tanh(ALIVE)),
        ("sigmoid", ALIVE, 1 / (1 + np.exp(-ALIVE))),
    ],
    outputs=ALIVE + 0.5,
    loss=2.3,
)


def alarms(**changes):
    seen = HEALTHY._replace(**changes)
    return {
        (tool, name) for tool, every in rules.TOOLS.items() for name in every if every[name](seen)
    }


def layer(kind, inputs):
    return [(kind, inputs, np.maximum(inputs, 0) if kind == "relu" else np.tanh(inputs))]


def test_a_healthy_network_raises_no_alarm():
    assert alarms() == set()


@pytest.mark.parametrize(
    ("below", "beyond", "expected"),
    [
        (
            {"mean_absolute_gradient": np.array([1.1e-7, 1, 1])},
            {"mean_absolute_gradient": np.array([0.9e-7, 1, 1])},
            {("SageMaker Debugger", "VanishingGradient"), ("DeepDiagnosis", "vanishing gradient")},
        ),
        (
            {"mean_absolute_gradient": np.ones(3)},
            {"mean_absolute_gradient": np.array([1, 0.9e-7, 1])},
            {("SageMaker Debugger", "VanishingGradient")},  # a bias
        ),
        (
            {"gradient_norm": np.array([0.9e-4, 1, 0.05])},
            {"gradient_norm": np.array([0.9e-4, 1, 0.1])},
            {("AutoTrainer", "gradient vanish")},
        ),
        (
            {"gradient_norm": np.array([69.0, 1, 1])},
            {"gradient_norm": np.array([71.0, 1, 1])},
            {("AutoTrainer", "gradient explode")},
        ),
        ({"zero_share": 0.69}, {"zero_share": 0.7}, {("AutoTrainer", "dying ReLU")}),
        (
            {"activations": layer("tanh", 9.4 * np.ones((100, 4)) * [1, 1, 0, 0])},
            {"activations": layer("tanh", 9.5 * np.ones((100, 4)) * [1, 1, 1, 0])},
            {
                ("SageMaker Debugger", "SaturatedActivation"),
                ("DeepDiagnosis", "saturated activation"),
            },
        ),
        (
            {"activations": layer("relu", np.where(ALIVE > 0, 1.0, -1.0))},
            {
                "activations": layer(
                    "relu", np.where(np.arange(10) < 7, -1.0, 1.0) * np.ones((200, 1))
                )
            },
            {("SageMaker Debugger", "DeadRelu"), ("DeepDiagnosis", "dead node")},
        ),
        (
            {"loss": 9e4},
            {"loss": float("nan")},
            {
                ("SageMaker Debugger", "ExplodingTensor"),
                ("DeepDiagnosis", "invalid loss"),
                ("AutoTrainer", "gradient explode"),
            },
        ),
    ],
)
def test_thresholds(below, beyond, expected):
    assert alarms(**below) == set()
    assert alarms(**beyond) == expected


def test_what_is_observed_of_a_stack():
    network = mlp("relu", 5, width=16)
    init, batch = rules.examined(network)
    params = init(0)
    seen = rules.Observer(network, params, batch)(params)
    assert [kind for kind, _, _ in seen.activations] == ["relu"] * 5
    assert all(inputs.shape == (256, 16) for _, inputs, _ in seen.activations)
    assert seen.kernels.sum() == 6
    first = np.asarray(batch[0] @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"])
    np.testing.assert_allclose(seen.activations[0][1], first, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(network.loss_fn)(params, batch)["hidden_0"]["kernel"]
    np.testing.assert_allclose(seen.gradient_norm[0], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(
        seen.mean_absolute_gradient[0], np.abs(gradient).mean(dtype=np.float64), rtol=1e-5
    )
    dead = dataclasses.replace(network, predict=lambda p, x: 0 * network.predict(p, x))
    assert rules.Observer(dead, params, batch)(params).zero_share == 1
