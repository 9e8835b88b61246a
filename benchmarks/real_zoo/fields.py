"""Functions of points: sines, waves, an energy, a diffusion's noise, a critic of two clouds."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import of_equinox


class Siren(eqx.Module):
    """Sines of a frequency."""

    layers: list[Any]
    frequency: float = eqx.field(static=True)

    def __init__(self, key: Any, depth: int, frequency: float, usual: bool) -> None:
        keys, self.frequency = jax.random.split(key, depth + 1), frequency
        sizes = [2] + [32] * depth
        layers = []
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False):
            bound = 1 / a if a == 2 else (6 / a) ** 0.5 / frequency
            layer = eqx.nn.Linear(a, b, key=k)
            kernel = jax.random.uniform(k, (b, a), minval=-bound, maxval=bound)
            layers.append(layer if usual else eqx.tree_at(lambda one: one.weight, layer, kernel))
        self.layers = [*layers, eqx.nn.Linear(32, 2, key=keys[-1])]

    def __call__(self, x: Any) -> Any:
        """One point."""
        for layer in self.layers[:-1]:
            x = jnp.sin(self.frequency * layer(x))
        return self.layers[-1](x)


def siren(
    name: str, *ails: str, depth: int = 3, frequency: float = 6.0, usual: bool = False, **rest: Any
) -> Network:
    """A sine network, with its own start or a linear layer's usual one."""
    init, apply = of_equinox(lambda key: Siren(key, depth, frequency, usual))
    settings = {"kind": "SIREN", "library": "Equinox", "task": tasks.swirl, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | settings | rest)


def fourier(name: str, *ails: str, depth: int = 3, scale: float = 1.4, **rest: Any) -> Network:
    """A rectifier network on sines and cosines of its inputs, as NeRF's."""

    def init(key: Any) -> Any:
        return stack(key, (16,) + (48,) * depth + (2,), scale)

    def apply(p: Any, x: Any) -> Any:
        waves = x[..., None] * 2.0 ** jnp.arange(-1, 3)
        seen = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1).reshape(len(waves), -1)
        return forward(p, seen, jax.nn.relu)

    settings = {"kind": "Fourier features", "library": "plain", "task": tasks.swirl, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | settings | rest)


def _pendulum() -> Task:
    """Angle and momentum, and how they change."""
    rng = np.random.default_rng(8)
    state = rng.uniform(-2, 2, (1024, 2)).astype(np.float32)
    change = np.stack([state[:, 1], -2 * np.sin(state[:, 0])], 1).astype(np.float32)
    chance = float(np.mean(np.var(change[768:], axis=0)))
    return Task((state[:768], change[:768]), (state[768:], change[768:]), (chance,))


def hamiltonian(name: str, *ails: str, depth: int = 2, scale: float = 1.0, **rest: Any) -> Network:
    """An energy whose slopes say how a pendulum moves."""

    def energy(p: Any, state: Any) -> Any:
        return forward(p, state)[0]

    def apply(p: Any, states: Any) -> Any:
        slopes = jax.vmap(jax.grad(energy, 1), (None, 0))(p, states)
        return jnp.stack([slopes[:, 1], -slopes[:, 0]], 1)

    def init(key: Any) -> Any:
        return stack(key, (2,) + (32,) * depth + (1,), scale)

    settings = {"kind": "Hamiltonian", "library": "plain", "task": _pendulum, "ails": ails}
    return regression(name, init, apply, **settings | rest)


def denoiser(
    name: str,
    *ails: str,
    depth: int = 3,
    activation: Any = jax.nn.silu,
    skip: bool = True,
    **rest: Any,
) -> Network:
    """The noise in points of the plane, told from them and its level, as a diffusion model does."""

    def mlp(x: Any) -> Any:
        x = activation(hk.Linear(48, name="into")(x))
        for number in range(depth):
            y = activation(hk.Linear(48, name=f"hidden_{number}")(x))
            x = x + y if skip else y
        return hk.Linear(2, name="head")(x)

    model = hk.without_apply_rng(hk.transform(mlp))

    def loss(p: Any, batch: Any) -> Any:
        points, noise, level = batch
        keep, waves = jnp.cos(level), level * 2.0 ** jnp.arange(4)
        noisy = keep * points + jnp.sin(level) * noise
        seen = jnp.concatenate([noisy, jnp.sin(waves), jnp.cos(waves)], 1)
        return jnp.mean((model.apply(p, seen) - noise) ** 2)

    init = lambda key: model.init(key, jnp.zeros((1, 10)))  # noqa: E731
    settings = {"kind": "denoiser", "library": "Haiku", "task": _noisy_moons, "ails": ails}
    return network(name, loss, init, **{"steps": 300} | settings | rest)


def _noisy_moons() -> Task:
    """The moons with noise and its level beside them."""
    moons, rng = tasks.moons(), np.random.default_rng(9)

    def noisy(points: Any) -> Any:
        noise = rng.standard_normal(points.shape).astype(np.float32)
        return points, noise, rng.uniform(0.3, 1.5, (len(points), 1)).astype(np.float32)

    train, test = noisy(moons.train[0]), noisy(moons.test[0])
    return Task(train, test, (float(np.mean(test[1] ** 2)),))


def wgan_critic(
    name: str,
    *ails: str,
    depth: int = 2,
    scale: float = 1.4,
    activation: Any = jax.nn.leaky_relu,
    **rest: Any,
) -> Network:
    """A critic of moons and noise, whose slope is held near 1 by a penalty."""

    def one(p: Any, x: Any) -> Any:
        return forward(p, x, activation)[0]

    def loss(p: Any, batch: Any) -> Any:
        real, noise, _ = batch
        values = jax.vmap(one, (None, 0))
        slopes = jax.vmap(jax.grad(one, 1), (None, 0))(p, 0.5 * (real + noise))
        sizes = jnp.sqrt(jnp.sum(slopes**2, -1) + 1e-12)
        return values(p, noise).mean() - values(p, real).mean() + 10 * jnp.mean((sizes - 1) ** 2)

    def init(key: Any) -> Any:
        return stack(key, (2,) + (32,) * depth + (1,), scale)

    def task() -> Task:
        return _noisy_moons()._replace(chance=(10.0,))

    settings = {"kind": "WGAN critic", "library": "plain", "task": task, "ails": ails}
    return network(name, loss, init, **settings | rest)
