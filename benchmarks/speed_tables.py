"""README's tables of times: steps, loops, looking and compiling."""

# On which optimizer steps are timed.
TREES = ("one leaf", "64 leaves", "stack of 64")


def training_speed(results):
    """Epoch time of the others over ours, and the share of the arithmetic floor."""
    rows = [
        "| | " + " | ".join(f"{model}: times `fit` | of the floor" for model in results) + " |",
        "|---" * (1 + 2 * len(results)) + "|",
    ]
    names = {
        "vanishjax.fit": "`vanishjax.fit`",
        "bare loop": "bare jitted loop of optax over NumPy batches",
        "bare loop, stack": "the same, equal layers in one stack",
        "nnx.jit": "loop of `nnx.jit` over NumPy batches",
        "keras": "Keras 3 `fit`, JAX backend",
        "torch": "torch, eager, `DataLoader`",
        "torch indexed": "torch, eager, batches indexed by hand",
        "torch compiled": "torch, compiled, fused Adam, batches indexed by hand",
    }
    for key, name in names.items():
        cells = []
        for found in results.values():
            share = found["share_of_arithmetic_floor"].get(key)
            over = found["over_vanishjax"].get(key)
            cells.append(ratio(over) if over else "1" if share else "")
            cells.append(f"{share['median']:.0%}" if share else "")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def fit_overhead(results):
    """Time a step and peak memory of `fit` beside the loop that everybody writes."""
    rows = [
        "| network | bare loop, us/step | `fit` on batches | on arrays | peak, MB: bare | `fit` |",
        "|---|---|---|---|---|---|",
    ]
    for found in results.values():
        cells = [
            f"3 x {found['width']}, batch {found['batch_size']}",
            f"{found['microseconds_a_step']['bare']['median']:.0f}",
            *(ratio(found["of_bare"][name]) for name in ("fit on batches", "fit on arrays")),
            *(f"{found['peak_megabytes'][name]:.0f}" for name in ("bare", "with fit")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def parallel_step(results):
    """Step time of every wrapper over one device's."""
    rows = ["| | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
    found = [model["over_one_device"] for model in results.values()]
    for name in found[0]:
        rows.append(f"| {name} | {' | '.join(ratio(each[name]) for each in found)} |")
    return rows


def step_time(results):
    """Step time over optax's."""
    found = results["optimizers"]
    names = dict.fromkeys(key.rsplit(", ", 1)[0] for key in found)
    rows = [
        f"| step time over optax's | {' | '.join(TREES)} | one leaf, over the floor |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        cells = [ratio(found[f"{name}, {tree}"]["ratio"]) for tree in TREES]
        cells.append(ratio(found[f"{name}, {TREES[0]}"]["vanishjax_over_floor"]))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def step_torch(results):
    """Step time over torch's, foreach and fused."""
    found = results["optimizers"]
    forms = ("foreach", "fused")
    heads = [f"{tree}: {form}" for tree in TREES for form in forms]
    rows = [f"| step time over torch's | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in dict.fromkeys(key.rsplit(", ", 1)[0] for key in found):
        ratios = [found[f"{name}, {tree}"].get(f"over_torch {f}") for tree in TREES for f in forms]
        if any(ratios):
            shown = ["" if one is None else ratio(one) for one in ratios]
            rows.append(f"| {name} | {' | '.join(shown)} |")
    return rows


def step_forms(results):
    """Adam's step on trees of all sizes: over optax's, over the floor, and what compiling takes."""
    rows = [
        "| Adam on | over optax's | over the floor | trace + compile, s | optax's |",
        "|---|---|---|---|---|",
    ]
    for name, found in results["forms"].items():
        cells = [ratio(found["ratio"]), ratio(found["vanishjax_over_floor"])]
        for library in ("vanishjax", "optax"):
            seconds = found["trace_seconds"][library] + found["compile_seconds"][library]
            cells.append(f"{seconds:.2f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def argument_order(results):
    """A training step of other loops over ours."""
    names = {
        "in order": "optax, one jitted step, (params, state) -> (params, state), donated",
        "crossed": "optax, the same, but (state, params) -> (params, state)",
        "separate": "optax, the update jitted apart, (gradients, state, params) -> (params, state)",
        "undonated": "optax, one jitted step, nothing donated",
    }
    rows = ["| loop | times the time of `make_train_step` (quartiles) |", "|---|---|"]
    for key, name in names.items():
        rows.append(f"| {name} | {ratio(results['over_vanishjax'][key])} |")
    ordered, crossed = (results["programs"][key] for key in ("in order", "crossed"))
    rows.append("")
    rows.append(
        f"Whole buffers that the compiled step copies: in order {ordered['copies']}, crossed "
        f"{crossed['copies']}; temporary memory {ordered['temporary_bytes'] / 1e6:.0f} and "
        f"{crossed['temporary_bytes'] / 1e6:.0f} MB."
    )
    return rows


def depth(results):
    """Tracing and compiling, and a step, against depth."""
    forms = list(dict.fromkeys(key.partition(", ")[2] for key in results))
    rows = [
        "| | trace + compile, s: Adam (optax's) | over depth 10 | Muon (optax's) | over depth 10 "
        "| step over optax's: Adam | Muon |",
        "|---|---|---|---|---|---|---|",
    ]
    for form in forms:
        cells = []
        for kind in ("adam", "muon"):
            ours, theirs = (results[f"{name} {kind}, {form}"] for name in ("vanishjax", "optax"))
            seconds = [
                one["trace_seconds"]["median"] + one["compile_seconds"]["median"]
                for one in (ours, theirs)
            ]
            cells.append(f"{seconds[0]:.1f} ({seconds[1]:.1f})")
            cells.append(f"{ours['trace_and_compile_over_depth_10']['median']:.2f}")
        for kind in ("adam", "muon"):
            cells.append(ratio(results[f"vanishjax {kind}, {form}"]["step_over_optax"]))
        rows.append(f"| {form} | {' | '.join(cells)} |")
    return rows


def monitoring(results):
    """Training steps with a monitor over those without, and what a probe costs."""
    rows = ["| | stacked | unrolled |", "|---|---|---|"]
    labels = {
        "itself": "the bare step again (noise)",
        **{
            f"monitor {every}": f"`monitor`, {every}"
            for every in ("every=1", "every=16", "every=256", "every=1, exact", "every=16, exact")
            if f"monitor {every}, stacked" in results
        },
        "debug.callback": "norms by `jax.debug.callback`, every step",
        "gradients to the host": "gradients pulled to the host, every step",
    }
    for name, label in labels.items():
        cells = [ratio(results[f"{name}, {form}"], 3) for form in ("stacked", "unrolled")]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    cells = [ratio(results[f"probe, {form}"]) for form in ("stacked", "unrolled")]
    rows.append(f"| `probe`, in training steps | {' | '.join(cells)} |")
    for name in (name for name in results if name.startswith("compiling")):
        label = f"{name}, `monitor`, every=16 over Adam alone"
        rows.append(f"| {label} |  | {ratio(results[name])} |")
    return rows


def verdict_cost(results):
    """A first verdict over a first gradient, in CPU time and in memory."""
    rows = [
        "| network | first gradient, CPU s | first verdict over it | second gradient, s "
        "| second verdict, s | with another Adam, s | memory over the gradient's |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        cells = [
            f"{found['gradient_seconds']['median']:.1f}",
            ratio(found["over_gradient"]),
            *(
                f"{found[name]['median']:.1f}"
                for name in (
                    "second_gradient_seconds",
                    "second_verdict_seconds",
                    "other_optimizer_seconds",
                )
            ),
            f"{found['memory_over_gradient']:.2f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def ratio(found, digits=2) -> str:
    """A ratio's median and quartiles."""
    low, high = found["quartiles"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"
