"""The published rules of other tools on the networks of `benchmarks.diagnosis`, before training.

The rules are written anew from what their authors published, with their default thresholds; each
sees what `diagnose` sees, the initial parameters and one batch. Which of them train is known from
diagnosis.json. The tools were made to watch a training run: of AutoTrainer the rules on gradients
are here, without its condition that the accuracy stays low, and of all of them nothing that needs
more than one step, a chosen collection of tensors or a loss curve.

    python -m benchmarks published_rules
"""

import collections
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import vanishjax as vj
from benchmarks import record
from benchmarks.diagnosis import QUICK, SEEDS, examined, labels, truth_of
from benchmarks.networks import Network, held_out_networks
from vanishjax import activations


class Observation(NamedTuple):
    """What the rules see.

    Attributes:
      kernels: Which of the layers below are kernels; layers stand in depth order.
      mean_gradient: `[layers]`, mean of the gradient's entries.
      mean_absolute_gradient: `[layers]`, mean of their absolute values.
      gradient_norm: `[layers]`.
      zero_share: Share of all gradient entries that are exactly zero.
      mean_weight: `[layers]`, mean of the parameters.
      activations: Name, inputs and outputs of each ReLU, tanh and sigmoid layer.
      outputs: The logits.
      loss: The loss.
    """

    kernels: np.ndarray
    mean_gradient: np.ndarray
    mean_absolute_gradient: np.ndarray
    gradient_norm: np.ndarray
    zero_share: float
    mean_weight: np.ndarray
    activations: list[tuple[str, np.ndarray, np.ndarray]]
    outputs: np.ndarray
    loss: float


Rules = Mapping[str, Callable[[Observation], bool]]


def shares(found: Observation, name: str, alive: Callable[[Any, Any], Any]) -> Iterator[np.ndarray]:
    """Of every layer with one activation: the share of examples at which each unit is alive."""
    for kind, inputs, outputs in found.activations:
        if kind == name:
            yield alive(inputs, outputs).reshape(-1, inputs.shape[-1]).mean(0)


def inside(low: float, high: float) -> Callable[[Any, Any], Any]:
    """Whether an input lies between two thresholds."""
    return lambda inputs, _: (inputs > low) & (inputs < high)


def finite(*arrays: Any) -> bool:
    """Whether all entries of all arrays are finite."""
    return all(np.isfinite(array).all() for array in arrays)


# Amazon SageMaker Debugger, "List of Debugger built-in rules" in its developer guide, defaults:
# VanishingGradient threshold 1e-7; DeadRelu and SaturatedActivation threshold_inactivity 1 %,
# threshold_layer 50 %, tanh inputs in +-9.4999, sigmoid inputs in -23..16.99999; ExplodingTensor.
def idle(units: np.ndarray) -> bool:
    """Whether more than half of the units are active on less than one example in a hundred."""
    return bool((units < 0.01).mean() > 0.5)


SAGEMAKER: Rules = {
    "VanishingGradient": lambda o: bool((o.mean_absolute_gradient < 1e-7).any()),
    "ExplodingTensor": lambda o: (
        not finite(
            o.mean_gradient, o.mean_weight, o.outputs, o.loss, *(a[2] for a in o.activations)
        )
    ),
    "DeadRelu": lambda o: any(map(idle, shares(o, "relu", lambda _, outputs: outputs > 0))),
    "SaturatedActivation": lambda o: (
        any(map(idle, shares(o, "tanh", inside(-9.4999, 9.4999))))
        or any(map(idle, shares(o, "sigmoid", inside(-23, 16.99999))))
    ),
}


# DeepDiagnosis, Wardat et al., ICSE 2022; thresholds from callback/callbacks.py of its artifact,
# github.com/DeepDiagnosis/ICSE2022: gradients of kernels 1e-7; .7 of a ReLU layer's outputs at 0;
# more than half of a tanh or sigmoid layer's inputs at or beyond +-5; a mean of 0 or no number.
def no_number(means: Any) -> bool:
    """Whether a mean is 0, infinite or NaN."""
    return bool((~np.isfinite(means) | (np.asarray(means) == 0)).any())


DEEP_DIAGNOSIS: Rules = {
    "vanishing gradient": lambda o: bool((o.mean_absolute_gradient[o.kernels] < 1e-7).any()),
    "numerical error": lambda o: (
        no_number(o.mean_gradient[o.kernels])
        or no_number(o.mean_weight[o.kernels])
        or no_number([np.mean(x) for x in (o.outputs, *(a[2] for a in o.activations))])
    ),
    "dead node": lambda o: any(
        (outputs <= 0).mean() >= 0.7 for kind, _, outputs in o.activations if kind == "relu"
    ),
    "saturated activation": lambda o: any(
        (np.abs(inputs) >= 5).mean() > 0.5
        for kind, inputs, _ in o.activations
        if kind in ("tanh", "sigmoid")
    ),
    "invalid loss": lambda o: not finite(o.loss),
}


# AutoTrainer, Zhang et al., ICSE 2021; thresholds from AutoTrainer/utils of its artifact,
# github.com/shiningrain/AUTOTRAINER: beta_1 1e-3, beta_2 1e-4, beta_3 70, gamma .7.
def gradient_rate(found: Observation) -> float:
    """Norm of the first kernel's gradient over the last one's."""
    norms = found.gradient_norm[found.kernels]
    with np.errstate(all="ignore"):
        return norms[0] / norms[-1]


AUTOTRAINER: Rules = {
    "gradient vanish": lambda o: bool(
        gradient_rate(o) < 1e-3 and o.gradient_norm[o.kernels][0] < 1e-4
    ),
    "gradient explode": lambda o: bool(
        gradient_rate(o) > 70 or not finite(o.mean_gradient, o.mean_weight, o.loss) or o.loss >= 1e5
    ),
    "dying ReLU": lambda o: o.zero_share >= 0.7,
}

TOOLS = {
    "SageMaker Debugger": SAGEMAKER,
    "DeepDiagnosis": DEEP_DIAGNOSIS,
    "AutoTrainer": AUTOTRAINER,
}


class Observer:
    """Observes one network at any parameters."""

    def __init__(self, network: Network, params: Any, batch: Any) -> None:
        self.seen: list[tuple[str, np.ndarray, np.ndarray]] = []
        self.batch = batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", vj.LayerOrderWarning)
            self.layers = vj.find_layers(params, network.loss_fn, batch)
        self.measure = jax.jit(jax.value_and_grad(network.loss_fn))
        self.kernels = np.array(["kernel" in name for name in self.layers.names])
        known = {
            name: self.recorded(name, activation)
            if name in ("relu", "tanh", "sigmoid")
            else activation
            for name, activation in activations.ACTIVATIONS.items()
        }
        # Flax's scan traces its body once more to see that nothing broadcast varies, and takes a
        # callback in it for such a thing.
        scan = functools.partial(nn.scan, check_constancy_invariants=False)
        # Networks look their activations up while they are traced.
        with (
            mock.patch.object(activations, "ACTIVATIONS", known),
            mock.patch.object(nn, "scan", scan),
        ):
            self.predict = jax.jit(network.predict).lower(params, batch[0]).compile()

    def recorded(self, name: str, activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """An activation that leaves behind what it got and gave."""

        def keep(inputs: Any, outputs: Any) -> None:
            self.seen.append((name, np.asarray(inputs, float), np.asarray(outputs, float)))

        def call(inputs: Any) -> Any:
            outputs = activation(inputs)
            jax.debug.callback(keep, inputs, outputs, ordered=True)
            return outputs

        return call

    def __call__(self, params: Any) -> Observation:
        """One look."""
        self.seen = []
        outputs = np.asarray(self.predict(params, self.batch[0]), float)
        jax.effects_barrier()
        loss, gradient = self.measure(params, self.batch)

        def over(fn: Callable[..., Any], tree: Any) -> np.ndarray:
            return np.asarray(self.layers.reduce(lambda x, axes: fn(x, axis=axes), tree), float)

        leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(gradient)]
        return Observation(
            self.kernels,
            over(jnp.mean, gradient),
            over(lambda x, axis: jnp.mean(jnp.abs(x), axis=axis), gradient),
            np.asarray(self.layers.norms(gradient), float),
            sum((leaf == 0).sum() for leaf in leaves) / sum(leaf.size for leaf in leaves),
            over(jnp.mean, params),
            self.seen,
            outputs,
            float(loss),
        )


def fired(network: Network, seeds: int) -> list[dict[str, list[str]]]:
    """Of every seed: the rules of each tool that raise an alarm."""
    init, batch = examined(network)
    observe = Observer(network, init(0), batch)
    found = []
    for seed in range(seeds):
        seen = observe(init(seed))
        found.append(
            {
                tool: [name for name, rule in rules.items() if rule(seen)]
                for tool, rules in TOOLS.items()
            }
        )
    return found


def score(rows: list[dict[str, Any]], tool: str) -> dict[str, Any]:
    """Recall and false alarms of one tool, and the share of alarms by cause."""
    alarms: dict[str, list[bool]] = collections.defaultdict(list)
    for row in rows:
        alarms[row["truth"]] += [bool(one[tool]) for one in row["fired"]]
    sick = [one for truth, found in alarms.items() if truth != "healthy" for one in found]
    return {
        "recall": float(np.mean(sick)) if sick else None,
        "sick_cases": len(sick),
        "false_alarms": float(np.mean(alarms["healthy"])) if alarms["healthy"] else None,
        "healthy_cases": len(alarms["healthy"]),
        "alarms_by_truth": {truth: [sum(found), len(found)] for truth, found in alarms.items()},
    }


def main() -> None:
    """Examines all held-out networks, and writes published_rules.json."""
    options = record.parser(__doc__).parse_args()
    known = labels()
    seeds = 2 if options.quick else SEEDS
    rows = []
    for network in held_out_networks():
        if options.quick and network.name not in QUICK:
            continue
        label = known[network.name]
        verdicts = label["verdicts"][:seeds]
        row = {
            "network": network.name,
            "truth": truth_of(label),
            "fired": [
                {"vanishjax": ours["rules"], **theirs}
                for ours, theirs in zip(verdicts, fired(network, seeds), strict=True)
            ],
        }
        rows.append(row)
        print(f"{network.name:36} {row['truth']:20} {row['fired'][0]}", flush=True)
        jax.clear_caches()
    results = {
        "tools": {tool: score(rows, tool) for tool in ("vanishjax", *TOOLS)},
        "networks": rows,
    }
    for tool, found in results["tools"].items():
        print(tool, found)
    settings = {"seeds": seeds, "labels": "diagnosis.json, held_out", "quick": options.quick}
    record.write("published_rules", options.out, settings, results)


if __name__ == "__main__":
    main()
