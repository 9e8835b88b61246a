"""Cures on networks that are sick: how many are repaired, at what cost, and by chance.

zoo: the sick ones of the held-out networks (`benchmarks.networks`), three seeds each, with their
own optimizer at its middle rate. `cure` gets a few batches; what it returns is trained to the end.
Repaired means a test accuracy within three points of the best healthy network's of the same data.
Beside it a control: as many remedies as `cure` tried, drawn at random from all there are, with the
same trials, of which the one with the least held-out loss is kept.

fresh: the same on a second set, of networks not seen when the cures were done: what the first set's
misses taught is in them. Which are sick is found out by training (as in `benchmarks.diagnosis`).

matrix: every remedy, by itself and without any selection, on a network of every cause and on two
healthy ones: test accuracy after a shorter training, so that what does nothing or harm shows. With
one that is often advised: Adam with a smaller eps.

deep: networks far beyond any optimizer's reach, each with whatever cure it takes.

A network is written as soon as it is done, and a run that was broken off goes on where it was; each
part carries the commit that measured it last.

    python -m benchmarks cure --data-dir FOLDER_OF_mnist --jobs 2
    python -m benchmarks cure --quick    # one network of the zoo, one seed
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vanishjax as vj
from benchmarks import networks, record
from benchmarks.diagnosis import CLOSED, STEPS, closed_gap, labels, train
from vanishjax.training import local_step, scan_steps
from vanishjax.training.batches import rows_of
from vanishjax.training.data import load_dataset
from vanishjax.treatment import remedies

SEEDS, FULL_STEPS, TRIAL_STEPS, BATCH, BATCHES = 3, 1500, 40, 64, 48
WITHIN = 0.03
# Nothing that changes parameters or the optimizer can help these: their loss has no slope, or no
# value, whatever the parameters.
BEYOND = ("softmax of one", "all frozen", "log of negatives")

# All that can be tried, but for another architecture, in an order that a control draws from.
_KERNELS = ("lsuv", "small_lsuv", "looks_linear")
IDS = (
    "loss_scale",
    *_KERNELS,
    *(f"slow_{name}" for name in _KERNELS),
    *("tiny_lsuv", "redraw", "adam_atan2", "muon", "deep_muon", "clip"),
)


def test_data(name):
    """Examples that are in no training set."""
    if name == "digits":
        part = load_dataset("digits", validation_split=0.2, seed=0).test
        return part.inputs, part.labels
    return {"blob": networks.blob, "circle": networks.circle}[name](seed=1)


def accuracy(problem, params, data):
    """Share of examples that are right; 0 where an output isn't finite."""
    outputs = problem.predict_fn(params, data[0])
    right = jnp.mean(jnp.argmax(outputs, axis=-1) == data[1])
    return float(jnp.where(jnp.isfinite(outputs).all(), right, 0.0))


@functools.cache
def optimizer_of(network):
    """Its own, at the middle rate; one object, so that it is compiled once."""
    return network.optimizer(network.rates[len(network.rates) // 2])


def problem_of(network, seed):
    """The network at its start."""
    inputs, _ = networks.DATA[network.data]()
    params = jax.jit(network.init)(jax.random.key(seed), jnp.asarray(inputs))
    return vj.Problem(network.loss_fn, params, optimizer_of(network), predict_fn=network.predict)


def trained(problem, opt_state, data, steps, seed):
    """Parameters after so many more steps."""
    keys = jax.random.split(jax.random.key(seed + 1000), steps)
    return trained_on(problem, opt_state, tuple(jnp.asarray(a) for a in data), keys, BATCH)


def trained_on(problem, opt_state, data, keys, size):
    """Parameters after a step for each key, which draws a batch of so many examples."""
    state = problem.tx.init(problem.params) if opt_state is None else opt_state
    return _trained(problem.loss_fn, problem.tx, problem.params, state, data, keys, size)


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def _trained(loss_fn, tx, params, state, data, keys, size):
    step = local_step(loss_fn, tx)

    def batch_of(key):
        rows = jax.random.randint(key, (size,), 0, len(data[0]))
        return rows_of(data, rows)

    start = vj.TrainState(jnp.zeros([], jnp.int32), params, state, jnp.zeros([]))
    return scan_steps(step, start, keys, batch_of)[0].params


def batches_of(data, seed, count=BATCHES):
    """Batches for the trials."""
    rows = np.random.default_rng(seed).integers(0, len(data[0]), (count, BATCH))
    return [(jnp.asarray(data[0][i]), jnp.asarray(data[1][i])) for i in rows]


def all_remedies(problem, batch, key, steps=FULL_STEPS):
    """Every remedy for a problem without a factory."""
    context = remedies.Context(problem, batch, total_steps=steps, key=key)
    return [remedies.KNOWN[name](context) for name in IDS]


def at_random(known, seed):
    """Remedies in an order drawn at random."""
    return [known[pick] for pick in np.random.default_rng(seed).permutation(len(known))]


def by_chance(problem, batches, drawn, key):
    """A treatment by remedies drawn at random: the one with the least held-out loss."""
    best = None
    for remedy in drawn:
        found = vj.cure(problem, batches, steps=TRIAL_STEPS, remedies=[remedy], key=key)
        trial = found.trials[-1] if found.trials else None
        if trial is None or trial.outcome in ("untreated", "failed", "diverged"):
            continue
        if best is None or trial.loss < best[0]:
            best = trial.loss, remedy
    return None if best is None else best[1]


def treat(network, seed, reference):
    """Cure and control of one network and seed."""
    data, test = networks.DATA[network.data](), test_data(network.data)
    problem, key = problem_of(network, seed), jax.random.key(seed)
    batches = batches_of(data, seed)
    treatment = vj.cure(problem, batches, steps=TRIAL_STEPS, key=key, total_steps=FULL_STEPS)
    rest = FULL_STEPS - TRIAL_STEPS
    params = trained(treatment.problem, treatment.opt_state, data, rest, seed)
    reached = accuracy(treatment.problem, params, test)
    count = max(1, len(treatment.trials) - 1)
    drawn = at_random(all_remedies(problem, batches[0], key), seed)[:count]
    chosen = by_chance(problem, batches, drawn, key)
    control = problem if chosen is None else chosen.treat(problem)
    by_luck = accuracy(control, trained(control, None, data, FULL_STEPS, seed), test)
    return {
        "seed": seed,
        "accepted": [one.name for one in treatment.accepted],
        "trials": {trial.remedy: trial.outcome for trial in treatment.trials},
        "cost": treatment.cost / FULL_STEPS,
        "train_accuracy": accuracy(treatment.problem, params, data),
        "test_accuracy": reached,
        "repaired": reached >= reference - WITHIN,
        "control": None if chosen is None else chosen.name,
        "control_accuracy": by_luck,
        "control_repaired": by_luck >= reference - WITHIN,
    }


def references():
    """The best test accuracy of healthy networks, by data: those that train best."""
    healthy = {
        "digits": [networks.mlp("relu", 3, scale=2.0), networks.mlp("tanh", 4)],
        "blob": [networks.mlp("relu", 3, scale=2.0, data="blob")],
        "circle": [networks.mlp("relu", 2, scale=2.0, data="circle")],
    }
    best = {}
    for data, candidates in healthy.items():
        examples, test = networks.DATA[data](), test_data(data)
        best[data] = max(
            accuracy(p, trained(p, None, examples, FULL_STEPS, 0), test)
            for p in (problem_of(network, 0) for network in candidates)
        )
    return best


def summary(rows):
    """Shares repaired."""
    runs = [run for row in rows if not row["beyond"] for run in row["runs"]]
    lost = [run for row in rows if row["beyond"] for run in row["runs"]]
    costs = [run["cost"] for run in runs]
    return {
        "networks": len(rows),
        "runs": len(runs),
        "repaired": float(np.mean([run["repaired"] for run in runs])),
        "control_repaired": float(np.mean([run["control_repaired"] for run in runs])),
        "cost": record.spread(costs) if costs else None,
        "beyond_runs": len(lost),
        "beyond_left_alone": sum(not run["accepted"] for run in lost),
    }


def divided(work, cases, jobs):
    """What `work` makes of each case, in order, by so many processes."""
    if jobs == 1:
        yield from map(work, cases)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(work, cases)


def treat_network(name, seeds, references, candidates):
    """Cure and control of one network, by its name and that of its set."""
    network = next(one for one in getattr(networks, candidates)() if one.name == name)
    started = time.perf_counter()
    runs = [treat(network, seed, references[network.data]) for seed in range(seeds)]
    jax.clear_caches()
    return {
        "network": name,
        "ails": network.ails[0],
        "beyond": name.endswith(BEYOND),
        "runs": runs,
        "seconds": time.perf_counter() - started,
    }


def zoo(results, save, seeds, jobs, most=None):
    """All sick held-out networks, or the first few."""
    sick = {name for name, one in labels().items() if not one["trains"]}
    names = [one.name for one in networks.held_out_networks() if one.name in sick][:most]
    treat_all(names, results, save, seeds, jobs, "held_out_networks")


def fresh(results, save, seeds, jobs):
    """All of the second set that don't train."""
    closed = results.setdefault("closed", {})
    for network in networks.fresh_networks():
        if network.name not in closed:
            closed[network.name] = closed_gap(network, train(network, seeds, STEPS))
            print(f"{network.name:40s} {closed[network.name]:6.2f}", flush=True)
    jax.clear_caches()
    names = [name for name, share in closed.items() if share < CLOSED]
    treat_all(names, results, save, seeds, jobs, "fresh_networks")


def treat_all(names, results, save, seeds, jobs, candidates):
    """Cures and controls of networks that aren't in the results yet."""
    results.setdefault("references", references())
    rows = results.setdefault("networks", [])
    done = {row["network"] for row in rows}
    work = functools.partial(
        treat_network, seeds=seeds, references=results["references"], candidates=candidates
    )
    for row in divided(work, [name for name in names if name not in done], jobs):
        rows.append(row)
        results["summary"] = summary(rows)
        for run in row["runs"]:
            print(row["network"], run, flush=True)
        save()


MATRIX_STEPS = 600
MATRIX = (
    networks.mlp("sigmoid", 20),
    networks.mlp("relu", 40, scale=0.5),
    networks.mlp("relu", 64, scale=2.0),
    networks.mlp("tanh", 64, scale=25.0),
    networks.mlp("tanh", 3, scale=20000.0),
    networks.mlp("relu", 3, scale=2.0, label="bias -30", bias_init=networks.constant(-30.0)),
    networks.scaled(
        networks.mlp("tanh", 3, **networks.FLOAT16), "tanh x3, float16, loss x 3e-7", 3e-7
    ),
    networks.scaled(networks.mlp("selu", 4), "selu x4, loss x 3e-14", 3e-14),
    networks.mlp("tanh", 6),
    networks.mlp("relu", 5, scale=2.0),
)


def small_eps(problem):
    """What is often advised."""
    return dataclasses.replace(problem, tx=optax.adam(0.003, eps=1e-30))


def try_every_remedy(number):
    """Every remedy on one network of the matrix, and what the diagnosis says of it."""
    network = MATRIX[number]
    row = {}
    data, test = networks.DATA[network.data](), test_data(network.data)
    problem = problem_of(network, 0)
    batch = batches_of(data, 0, 1)[0]
    untreated = vj.Remedy("untreated", lambda problem: problem)
    advised = vj.Remedy("optax adam, eps 1e-30", small_eps)
    known = all_remedies(problem, batch, jax.random.key(0), MATRIX_STEPS)
    for remedy in (untreated, *known, advised):
        try:
            treated = remedy.treat(problem)
            params = trained(treated, None, data, MATRIX_STEPS, 0)
            row[remedy.name] = accuracy(treated, params, test)
        except ValueError as error:
            row[remedy.name] = None
            print(network.name, remedy.name, error)
    rule = vj.diagnose(problem.loss_fn, problem.params, batch, problem.tx).findings
    row["diagnosis"] = rule[0].rule if rule and rule[0].severity == "critical" else "healthy"
    jax.clear_caches()
    return network.name, row


def matrix(results, save, jobs):
    """Every remedy on every cause."""
    left = [number for number, network in enumerate(MATRIX) if network.name not in results]
    for name, row in divided(try_every_remedy, left, jobs):
        results[name] = row
        print(name, row, flush=True)
        save()


DEEP = {
    "relu x64, parameters and optimizer alone": ("relu", 64, False),
    "sigmoid x300": ("sigmoid", 300, True),
    "tanh x1000": ("tanh", 1000, True),
}


def treat_deep(case, folder):
    """The cure of one network and seed."""
    name, seed = case
    activation, depth, may_rebuild = DEEP[name]
    data = load_dataset("mnist", data_dir=folder / "mnist", validation_split=0.2, seed=0)
    examples, test = (
        (part.inputs[:10_000], part.labels[:10_000]) for part in (data.train, data.test)
    )
    started, key = time.perf_counter(), jax.random.key(seed)
    problem = vj.mlp_problem(784, (64,) * depth, 10, activation=activation, key=key)
    if not may_rebuild:
        problem = vj.Problem(
            problem.loss_fn, problem.params, problem.tx, predict_fn=problem.predict_fn
        )
    batches = batches_of(examples, seed)
    treatment = vj.cure(problem, batches, steps=TRIAL_STEPS, key=key, total_steps=FULL_STEPS)
    rest = FULL_STEPS - TRIAL_STEPS
    params = trained(treatment.problem, treatment.opt_state, examples, rest, seed)
    return {
        "seed": seed,
        "accepted": [one.name for one in treatment.accepted],
        "cost": treatment.cost / FULL_STEPS,
        "train_accuracy": accuracy(treatment.problem, params, examples),
        "test_accuracy": accuracy(treatment.problem, params, test),
        "seconds": time.perf_counter() - started,
    }


def deep(results, save, seeds, jobs, folder):
    """Networks beyond the reach of optimizers."""
    cases = [
        (name, seed)
        for name in DEEP
        for seed in range(seeds)
        if all(run["seed"] != seed for run in results.get(name, []))
    ]
    work = functools.partial(treat_deep, folder=folder)
    for (name, _), run in zip(cases, divided(work, cases, jobs), strict=True):
        results.setdefault(name, []).append(run)
        print(name, run, flush=True)
        save()


def main():
    """Treats what isn't in the JSON yet, and writes it."""
    parser = record.parser(__doc__)
    parser.add_argument("--data-dir", type=Path, help="for the deep ones: a folder with mnist")
    parser.add_argument("--part", choices=("zoo", "fresh", "matrix", "deep"), action="append")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    options = parser.parse_args()
    seeds, most = (1, 1) if options.quick else (SEEDS, None)
    settings = {
        "seeds": seeds,
        **({"quick": True} if options.quick else {}),
        "full_steps": FULL_STEPS,
        "trial_steps": TRIAL_STEPS,
        "batch_size": BATCH,
        "repaired_within": WITHIN,
    }
    path = options.out / "cure.json"
    results = {"zoo": {}, "fresh": {}, "matrix": {}, "deep": {}, "commits": {}}
    if path.exists() and (known := json.loads(path.read_text()))["settings"] == settings:
        results |= known["results"]

    def save(part):
        results["commits"][part] = record.commit()
        record.write("cure", options.out, settings, results)

    parts = options.part or (("zoo",) if options.quick else ("zoo", "fresh", "matrix"))
    if options.part is None and options.data_dir is not None and not options.quick:
        parts = (*parts, "deep")
    if "zoo" in parts:
        zoo(results["zoo"], functools.partial(save, "zoo"), seeds, options.jobs, most)
    if "fresh" in parts:
        fresh(results["fresh"], functools.partial(save, "fresh"), seeds, options.jobs)
    if "matrix" in parts:
        matrix(results["matrix"], functools.partial(save, "matrix"), options.jobs)
    if "deep" in parts:
        if options.data_dir is None:
            parser.error("the deep ones need --data-dir, a folder with mnist")
        deep(
            results["deep"], functools.partial(save, "deep"), seeds, options.jobs, options.data_dir
        )


if __name__ == "__main__":
    main()
