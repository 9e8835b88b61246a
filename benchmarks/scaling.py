"""What a training step sends from device to device: the collectives of the compiled program.

A training step of an unrolled MLP, 8 hidden layers of 256, is compiled for eight devices, with the
state whole on each of them ("data parallel"), with the optimizer's state divided ("zero1") and with
the parameters divided too ("fsdp"). Its collectives are counted in the optimized program, and from
their sizes the bytes that a device sends in a step if each is done as a ring: of n devices, each
sends 2 B (n - 1) / n for an all-reduce of B bytes, B (n - 1) / n for an all-gather or
reduce-scatter.

The sizes are those of whole arrays, so that the same sum tells what 1,000 devices would send.
That is on paper: no network was timed. The program is the CPU compiler's, which divides a mean
gradient by an all-reduce where others take a reduce-scatter, half as long.

    python -m benchmarks scaling
"""

import collections
import math
import os
import re

import jax
import jax.numpy as jnp
import optax

import vanishjax as vj
from benchmarks import record
from vanishjax.training import local_step
from vanishjax.training.layout import make_layout

DEVICES, MANY = 8, 1000
WIDTH, DEPTH, BATCH, FEATURES, CLASSES = 256, 8, 256, 256, 16
LAYOUTS = {"data parallel": None, "zero1": "zero1", "fsdp": "fsdp"}
# Bytes that a ring sends from each device, for one byte of the whole array, times n / (n - 1).
RING = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
KINDS = (*RING, "collective-permute")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")


def chains(layers):
    """What is compared."""
    return {
        "sgd": vj.sgd(0.1, 0.9),
        "adam": vj.adam(1e-3),
        "clip + adam": optax.chain(vj.clip_by_global_norm(1.0), vj.adam(1e-3)),
        "monitor(adam)": vj.monitor(vj.adam(1e-3), layers=layers),
        "lamb": vj.lamb(1e-3, layers=layers),
        "muon": vj.muon(0.02, layers=layers),
        "optax muon": optax.contrib.muon(0.02),
        "deep_muon": vj.deep_muon(0.02, 1000, layers=layers),
    }


def collectives(program):
    """Of a compiled program: `{kind: [bytes of each whole array]}`."""
    found = collections.defaultdict(list)
    for shapes, kind in COLLECTIVE.findall(program):
        size = sum(
            int(bits) // 8 * math.prod(map(int, filter(None, dimensions.split(","))))
            for _, bits, dimensions in ARRAY.findall(shapes)
        )
        # Of these the result is one device's part.
        found[kind].append(size * (DEVICES if kind in ("reduce-scatter", "all-to-all") else 1))
    return found


def sent(found, devices):
    """Bytes that one device sends in a step."""
    ring = sum(RING[kind] * sum(sizes) for kind, sizes in found.items() if kind in RING)
    return ring * (devices - 1) / devices + sum(found.get("collective-permute", ()))


def program_of(problem, tx, batch, sharded):
    """The optimized program of a step."""
    layout, step = make_layout("jit", None, sharded), local_step(problem.loss_fn, tx)
    compiled = layout.compile(lambda state, _, batch, rest: step(state, batch, rest))
    state = layout.place(vj.TrainState.create(problem.params, tx))
    arguments = compiled.arranged(state, None, batch, None)
    program = compiled.jitted_for(state).lower(*arguments).compile().as_text()
    bodies = re.findall(r"body=%?([\w.\-]+)", program)
    for body in bodies:
        text = program.split(f"%{body} ", 1)[-1].split("\n}", 1)[0]
        if COLLECTIVE.search(text):
            raise ValueError("a collective inside a loop: it would be counted once")
    return program


def main():
    """Counts and writes the JSON."""
    options = record.parser(__doc__).parse_args()
    # JAX reads it when it is first used.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"
    problem = vj.mlp_problem(
        FEATURES, (WIDTH,) * DEPTH, CLASSES, activation="tanh", scan=False, key=jax.random.key(0)
    )
    batch = jnp.ones((BATCH, FEATURES)), jnp.arange(BATCH) % CLASSES
    layers = vj.find_layers(problem.params, problem.loss_fn, batch)
    parameter_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(problem.params))
    results = {}
    compared = chains(layers)
    for name in ("sgd", "clip + adam") if options.quick else compared:
        for layout, sharded in LAYOUTS.items():
            found = collectives(program_of(problem, compared[name], batch, sharded))
            results[f"{name}, {layout}"] = {
                "collectives": {kind: len(sizes) for kind, sizes in sorted(found.items())},
                "bytes": {kind: sum(sizes) for kind, sizes in sorted(found.items())},
                **{
                    f"sent_over_parameters_{n}": sent(found, n) / parameter_bytes
                    for n in (DEVICES, MANY)
                },
            }
            print(name, layout, results[f"{name}, {layout}"], flush=True)
    settings = {
        "devices": DEVICES,
        "model": f"{FEATURES}-{DEPTH} x {WIDTH}-{CLASSES}, unrolled",
        "batch": BATCH,
        "parameter_bytes": parameter_bytes,
        "quick": options.quick,
    }
    record.write("scaling", options.out, settings, results)


if __name__ == "__main__":
    main()
