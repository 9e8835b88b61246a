"""A transform where layers belong, layers where a transform belongs: refused in the factory."""

import inspect

import jax.numpy as jnp
import optax
import pytest

import vanishjax as vj
from tests.factories import REQUIRED, factories

FACTORIES = {name: inspect.signature(getattr(vj, name)).parameters for name in factories()}
WRAPPERS = [name for name, parameters in FACTORIES.items() if "inner" in parameters]
LAYERED = [name for name, parameters in FACTORIES.items() if "layers" in parameters]
LAYERS = vj.find_layers({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})
TX = optax.sgd(0.1)


def given(name, **arguments):
    required = {p.name: REQUIRED[p.name] for p in FACTORIES[name].values() if p.default is p.empty}
    return getattr(vj, name)(**(required | arguments))


def test_the_wrappers_are_found():
    expected = {"center", "monitor", "skip_nonfinite", "dynamic_loss_scale", "recondition"}
    assert set(WRAPPERS) == expected | {"polar_growth"}
    assert {"adam", "adamw", "nadam", "nadamw", "lamb", "lars", "muon", "deflate"} <= set(LAYERED)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_take_the_transform_first_and_the_rest_by_keyword(name):
    first, *rest = FACTORIES[name].values()
    assert first.name == "inner"
    assert {p.kind for p in rest} == {inspect.Parameter.KEYWORD_ONLY}
    factory = getattr(vj, name)
    with pytest.raises(TypeError, match=r"inner must be a gradient transform, got Layers.*layers="):
        factory(LAYERS)
    for wrong, kind in ((0.1, "float"), (vj.sgd, "function"), ({"w": 1}, "dict")):
        with pytest.raises(TypeError, match=f"inner must be a gradient transform, got {kind}"):
            factory(wrong)


@pytest.mark.parametrize("name", LAYERED)
def test_layers_are_layers(name):
    with pytest.raises(TypeError, match=r"layers must be a Layers .* got a gradient transform"):
        given(name, layers=TX)
    for wrong, kind in (({"w": 1}, "dict"), (("w",), "tuple")):
        with pytest.raises(TypeError, match=rf"layers must be a Layers .* got {kind}"):
            given(name, layers=wrong)


@pytest.mark.parametrize("name", WRAPPERS)
def test_an_accumulation_may_be_wrapped_as_it_is(name):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = getattr(vj, name)(optax.MultiSteps(TX, 2))
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].shape == (2, 2)


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "nadamw", "lamb"])
def test_adams_move_by_gradients_far_below_eps(name):
    params = {"w": jnp.ones(4), "b": jnp.ones(2)}
    g = {"w": jnp.full(4, 1e-12), "b": jnp.full(2, 1e-30)}
    layers = vj.find_layers(params)
    decay = {"weight_decay": 0.0} if "weight_decay" in FACTORIES[name] else {}
    tx = getattr(vj, name)(1e-3, eps_relative=True, layers=layers, **decay)
    updates, _ = tx.update(g, tx.init(params), params)
    assert all((abs(u) > 9e-4).all() for u in updates.values())
