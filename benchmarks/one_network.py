"""One sick network, a plain sigmoid MLP of 24 layers on the digits, seen and cured.

What `vanishjax.diagnose` and `vanishjax.cure` say of it, for two of README's pictures.

    python -m benchmarks one_network
"""

import jax
import optax

import vanishjax as vj
from benchmarks import record
from benchmarks.cure import BATCH, BATCHES, FULL_STEPS, TRIAL_STEPS, batches_of
from benchmarks.networks import DATA

ACTIVATION, WIDTH, DEPTH, RATE, SEED = "sigmoid", 64, 24, 1e-3, 0


def main():
    """Diagnoses, cures, and writes one_network.json."""
    options = record.parser(__doc__).parse_args()
    depth, count = (8, 16) if options.quick else (DEPTH, BATCHES)
    problem = vj.mlp_problem(
        64,
        (WIDTH,) * depth,
        10,
        activation=ACTIVATION,
        tx=optax.adam(RATE),
        key=jax.random.key(SEED),
    )
    batches = batches_of(DATA["digits"](), SEED, count)
    verdict = vj.diagnose(problem.loss_fn, problem.params, batches[0], problem.tx)
    steps = min(TRIAL_STEPS, count - 8)
    key = jax.random.key(SEED)
    treatment = vj.cure(problem, batches, steps=steps, key=key, total_steps=FULL_STEPS)
    print(treatment)
    results = {"diagnosis": verdict.to_dict(), "treatment": treatment.to_dict()}
    settings = {
        "data": "digits",
        "model": f"64-{depth} x {WIDTH}-10, {ACTIVATION}, LeCun initialization",
        "optimizer": f"adam, rate {RATE:g}",
        "batch_size": BATCH,
        "batches": count,
        "trial_steps": steps,
        "seed": SEED,
        "quick": options.quick,
    }
    record.write("one_network", options.out, settings, results)


if __name__ == "__main__":
    main()
