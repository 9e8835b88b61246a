"""What helps against what: the one table of remedies.

What a finding advises, what `vanishjax.cure` tries and README's tables are all rendered from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Trait = Literal["rectifier", "unit_slope", "residual", "recurrent", "loop", "derivative"]


class Advice(NamedTuple):
    """One remedy in words.

    Attributes:
      text: What to do.
      code: The same as a line of Python with `vanishjax` as `vj`, if there is one.
      needs: What a network must have for it to apply.
      unless: What a network must not have: there it does nothing, or is there already.
    """

    text: str
    code: str | None = None
    needs: Trait | None = None
    unless: tuple[Trait, ...] = ()


def _slow(advice: Advice) -> Advice:
    """A remedy with a smaller step beside it."""
    return advice._replace(
        text=f"{advice.text}; and a part of the learning rate",
        code=f"{advice.code}; tx = optax.chain(tx, optax.scale(0.3))",
    )


# `lsuv` leaves kernels alone that take in their own work, as a recurrent cell's do.
_KERNELS: Mapping[str, Advice] = {
    "lsuv": Advice(
        "re-initialize and center: orthogonal kernels, unit variance and zero mean on a batch",
        "params = vj.initializers.lsuv(loss_fn, params, batch)",
        unless=("recurrent",),
    ),
    "small_lsuv": Advice(
        "re-initialize at a small variance, where smooth activations are nearly linear",
        "params = vj.initializers.lsuv(loss_fn, params, batch, variance=depth**-0.5)",
        unless=("recurrent", "rectifier"),
    ),
    "looks_linear": Advice(
        "mirrored orthogonal kernels, with which a rectifier network starts linear",
        "params = vj.initializers.looks_linear(jax.random.key(0), params, layers)",
        needs="rectifier",
    ),
    "identity_attention": Advice(
        "equal orthogonal queries and keys, so large that each position attends to itself",
        "params = vj.initializers.identity_attention(loss_fn, params, batch)",
    ),
    "long_memory": Advice(
        "recurrent cells that start with a long memory: open gates, orthogonal kernels",
        "params = vj.initializers.long_memory(loss_fn, params, batch)",
        needs="loop",
    ),
    "redraw": Advice(
        "draw the kernels anew, set biases to 0, then lsuv",
        "params = vj.initializers.redraw(jax.random.key(0), params, layers)",
    ),
}

REMEDIES: Mapping[str, Advice] = MappingProxyType(
    {
        # What `cure` tries, in this order, the cheapest and most certain first: what makes up for
        # the type, parameters, the architecture where it can be rebuilt, and the optimizer.
        "loss_scale": Advice("scale the loss", "tx = vj.dynamic_loss_scale(tx)"),
        "stochastic_round": Advice(
            "round steps up or down at random, so that none is lost on average",
            "tx = optax.chain(tx, vj.stochastic_round())",
        ),
        "kahan_sum": Advice(
            "keep what rounding takes off each step", "tx = optax.chain(tx, vj.kahan_sum())"
        ),
        "less_decay": Advice(
            "no weight decay, or a smaller one", "tx = vj.treatment.without_decay(tx)"
        ),
        "rate_by_10": Advice(
            "a tenth of the learning rate", "tx = optax.chain(tx, optax.scale(0.1))"
        ),
        "fit_rate": Advice(
            "a learning rate at which a step changes kernels by a hundredth of their size",
            "step = vj.diagnose(loss_fn, params, batch, tx).relative_step; "
            "tx = optax.chain(tx, optax.scale(0.01 / step))",
        ),
        # A differential equation's inputs are what it differentiates by.
        "standardize": Advice(
            "standardize the inputs",
            "x = (x - x.mean(axis=0)) / x.std(axis=0)",
            unless=("derivative",),
        ),
        "standardize_inside": Advice(
            "standardize what the first kernels take in, by their coordinates",
            "inside = vj.treatment.standardize_inside(loss_fn, params, batch); "
            "params, tx = inside.start(params), inside.transform(tx)",
        ),
        "standardize_outputs": Advice(
            "a last layer in units of the targets: starts and steps as for standardized ones",
            "units = vj.treatment.standardize_outputs(loss_fn, params, batch); "
            "params = vj.treatment.match_targets(loss_fn, params, batch); tx = units.transform(tx)",
            unless=("derivative",),
        ),
        "match_targets": Advice(
            "a last layer that starts at the best constant output, as wide as the targets ask for",
            "params = vj.treatment.match_targets(loss_fn, params, batch)",
        ),
        "small_output": Advice(
            "a small last kernel: a variance of .01",
            "params = vj.initializers.small_output(loss_fn, params, batch)",
        ),
        "small_queries": Advice(
            "small queries and keys: a variance of 1 / sqrt(width of a head)",
            "params = vj.initializers.small_queries(loss_fn, params, batch)",
        ),
        "small_branches": Advice(
            "small residual branches: a variance of 1 / branches each",
            "params = vj.initializers.small_branches(loss_fn, params, batch)",
            needs="residual",
        ),
        "zero_means": Advice(
            "biases with which every unit's mean is zero on a batch",
            "params = vj.initializers.lsuv(loss_fn, params, batch, orthogonal=False, "
            "variance=None)",
        ),
        **_KERNELS,
        "rezero": Advice(
            "skip connections with a learned gain that starts at 0",
            "h = h + alpha * layer(h)",
            unless=("residual",),
        ),
        **{f"slow_{name}": _slow(advice) for name, advice in _KERNELS.items()},
        "tiny_lsuv": Advice(
            "a variance of .01, where even exponentials are nearly linear, and small even steps",
            "params = vj.initializers.lsuv(loss_fn, params, batch, variance=0.01); "
            "tx = vj.muon(3e-4, layers=layers)",
            unless=("recurrent", "rectifier"),
        ),
        "adam_atan2": Advice("an optimizer without an eps", "tx = vj.adam_atan2(1e-3)"),
        "muon": Advice("orthogonalized updates", "tx = vj.muon(0.01, layers=layers)"),
        "slow_muon": _slow(Advice("orthogonalized updates", "tx = vj.muon(0.01, layers=layers)")),
        "deep_muon": Advice(
            "centered, orthogonalized updates, if model and parameters must stay as they are",
            "tx = vj.deep_muon(0.01, total_steps, layers=layers)",
            unless=("recurrent", "residual"),
        ),
        "clip": Advice(
            "clip each layer's gradient",
            "tx = optax.chain(vj.clip_by_layer_norm(1.0, layers), tx)",
        ),
        "rate_by_30": Advice(
            "a thirtieth of the learning rate", "tx = optax.chain(tx, optax.scale(0.03))"
        ),
        "rate_by_3": Advice(
            "a third of the learning rate", "tx = optax.chain(tx, optax.scale(0.3))"
        ),
        "rate_x3": Advice(
            "three times the learning rate", "tx = optax.chain(tx, optax.scale(3.0))"
        ),
        "rate_x10": Advice(
            "ten times the learning rate", "tx = optax.chain(tx, optax.scale(10.0))"
        ),
        # What takes a person: another architecture, loss, input or type.
        "centered_activation": Advice(
            "an activation of mean zero (tanh)", "h = jnp.tanh(h)", unless=("unit_slope",)
        ),
        "unit_slope": Advice(
            "an activation of slope 1 at its center (tanh)",
            "h = jnp.tanh(h)",
            unless=("unit_slope", "rectifier"),
        ),
        "leaky_relu": Advice("leaky_relu, whose slope is nowhere 0", "h = jax.nn.leaky_relu(h)"),
        "bounded_activation": Advice("a bounded activation", "h = jnp.tanh(h)"),
        "larger_kernels": Advice("larger kernels: a variance of 2 / inputs", needs="rectifier"),
        "unit_kernels": Advice("larger kernels: a variance of 1 / inputs", unless=("rectifier",)),
        "standardize_targets": Advice(
            "standardize the targets, and undo that in what is predicted",
            "y = (y - y.mean(axis=0)) / y.std(axis=0)",
        ),
        "cooler": Advice(
            "a smaller factor before the softmax: a temperature of about .1 to start with",
            "logits = 10.0 * a @ b.T",
        ),
        "layer_norm": Advice("normalize pre-activations", "h = nn.LayerNorm()(h)"),
        "smaller_rate": Advice("a smaller learning rate", "tx = optax.chain(tx, optax.scale(0.3))"),
        "larger_rate": Advice("a larger learning rate", "tx = optax.chain(tx, optax.scale(3.0))"),
        "global_clip": Advice(
            "clip the gradient before the optimizer",
            "tx = optax.chain(vj.clip_by_global_norm(1.0), tx)",
        ),
        "adaptive_clip": Advice(
            "clip each layer's gradient to a share of its parameters",
            "tx = optax.chain(vj.adaptive_clip(0.01), tx)",
        ),
        "normalize": Advice(
            "bring each layer's gradient to one size",
            "tx = optax.chain(vj.normalize_by_layer(), tx)",
        ),
        "skip_nonfinite": Advice(
            "skip and name layers whose gradient isn't finite", "tx = vj.skip_nonfinite(tx)"
        ),
        "restore": Advice(
            "restore the last checkpoint", "state = vj.restore_checkpoint(folder, state)"
        ),
        "eps_relative": Advice(
            "an eps in units of each layer's gradient", "tx = vj.adam(1e-3, eps_relative=True)"
        ),
        "multiply_loss": Advice("multiply the loss by a constant", "loss = 1e6 * loss"),
        "bfloat16": Advice("bfloat16, which has float32's range", "dtype = jnp.bfloat16"),
        "float32": Advice("keep the parameters in float32", "param_dtype = jnp.float32"),
        "logits": Advice(
            "compute the loss from logits",
            "loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()",
        ),
        "raw_output": Advice(
            "hand the loss what the last kernel puts out, without an activation in between",
            "loss = loss_of(kernel_output, targets)",
        ),
        "same_shapes": Advice(
            "give the loss outputs and targets of the same shape",
            "targets = targets.reshape(outputs.shape)",
        ),
        "guard": Advice(
            "guard the argument of a root, a quotient or a logarithm, not its result",
            "y = jnp.log(jnp.where(x > 0, x, 1.0))",
        ),
        "slope": Advice("check the loss: it must have a slope where the network starts"),
        "sigmoid_output": Advice("one unit with a sigmoid, or two with a softmax"),
        "random_kernels": Advice("random initial kernels, zeros in the last one at most"),
        "unused": Advice("remove them, or find out why the model skips them"),
        "frozen_slope": Advice(
            "a frozen network with a slope where these layers' outputs are: one that has been "
            "trained on such inputs, or one with normalization, leaky_relu and skip connections"
        ),
        "frozen": Advice("leave it if they are frozen on purpose, or remove the stop_gradient"),
        "mask": Advice(
            "mask them out, if they are frozen on purpose", "tx = optax.masked(tx, trained)"
        ),
        "starts_at_zero": Advice("nothing: ReZero and zero-initialized outputs start like this"),
        "on_purpose": Advice("nothing, where a small gain holds them back on purpose (LayerScale)"),
        "diagnose": Advice(
            "diagnose the network as it is now", "vj.diagnose(loss_fn, params, batch, tx)"
        ),
        "more_steps": Advice("train for more steps"),
        "another_rate": Advice("another learning rate"),
        "labels": Advice("check that inputs and labels belong together"),
        "cure": Advice("try remedies on this network", "vj.cure(problem, batches, steps=100)"),
        "train_and_look": Advice("train it for some steps on one batch, and look at the loss"),
        "contract": Advice("smaller kernels inside the solver (a spectral norm below 1)"),
        "solve_better": Advice("more iterations, or a smaller tolerance, on the way back"),
        "derivative": Advice("check the function's own derivative"),
        "larger_inside": Advice("larger kernels inside it"),
        "skip_attention": Advice("skip connections around attention and MLP", unless=("residual",)),
        "pre_ln": Advice("normalization before each block instead of after it (pre-LN)"),
        "fewer_layers": Advice("fewer layers"),
        "scaled_scores": Advice(
            "divide by the square root of the head's width before the softmax",
            "scores = q @ k.T / head_width**0.5",
        ),
        "qk_norm": Advice("normalize queries and keys (QK-norm)"),
        "orthogonal_cell": Advice(
            "an orthogonal recurrent kernel",
            "nn.SimpleCell(features, recurrent_kernel_init=nn.initializers.orthogonal())",
            needs="recurrent",
        ),
        "gates": Advice(
            "a forget gate that starts open; without gates, an LSTM or a GRU", needs="recurrent"
        ),
        "skip_time": Advice("skip connections over time, or attention"),
    }
)
"""Every remedy by its id; what `cure` can try comes first, in the order in which it does."""


class Fitting(NamedTuple):
    """What fits a cause.

    Attributes:
      advised: What a finding advises, the best first.
      also_tried: What `cure` tries beside those of them that it can: right for some networks, and
        not to be advised without a trial.
    """

    advised: tuple[str, ...]
    also_tried: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """All, in the order in which to try them."""
        return tuple(name for name in REMEDIES if name in {*self.advised, *self.also_tried})


# The slower forms of new kernels: the deeper a network, the smaller a step it bears.
_SMOOTH = ("lsuv", "small_lsuv", "slow_lsuv", "slow_small_lsuv")
_MIRRORED = ("looks_linear", "slow_looks_linear")
_DEEP = (*_SMOOTH, *_MIRRORED)
STANDARD = ("standardize", "standardize_inside", "standardize_outputs")
_REDRAWN = ("redraw", "slow_redraw")
_REMEMBERING = ("long_memory", "slow_long_memory")

# What is advised did best in `benchmarks.cure` on networks of that cause, and nothing that failed
# there is (`tests/treatment/test_remedies.py`).
FITTING: Mapping[str, Fitting] = MappingProxyType(
    {
        "nonfinite": Fitting(
            ("slow_looks_linear", "slow_small_lsuv"),
            (*STANDARD, *_DEEP, *_REDRAWN, "tiny_lsuv", "clip"),
        ),
        "zero_gradient": Fitting(("redraw", "rezero"), (*STANDARD, "zero_means", "slow_redraw")),
        "mean_collapse": Fitting(
            ("slow_looks_linear", "lsuv", "centered_activation", "rezero", "deep_muon"),
            ("less_decay", *STANDARD, *_REMEMBERING, *_DEEP),
        ),
        "rank_collapse": Fitting(("slow_looks_linear", "lsuv", "rezero", "muon"), _DEEP),
        "vanishing_gradient": Fitting(
            (
                "slow_looks_linear",
                "lsuv",
                "rezero",
                "unit_slope",
                "larger_kernels",
                "unit_kernels",
                "long_memory",
                "orthogonal_cell",
                "gates",
                "deep_muon",
            ),
            ("less_decay", "small_branches", *_DEEP, "slow_long_memory", "adam_atan2"),
        ),
        "exploding_gradient": Fitting(
            ("small_branches", "slow_looks_linear", "slow_small_lsuv", "tiny_lsuv", "rezero"),
            (*STANDARD, *_REMEMBERING, *_DEEP, *_REDRAWN, "clip"),
        ),
        "saturated_units": Fitting(
            ("lsuv", "redraw", "standardize", "layer_norm"),
            (*STANDARD, "zero_means", *_REMEMBERING, "slow_lsuv", "slow_redraw"),
        ),
        "dead_units": Fitting(
            ("redraw", "leaky_relu", "smaller_rate"),
            (*STANDARD, "zero_means", "lsuv", "slow_lsuv", "slow_redraw"),
        ),
        "underflow": Fitting(("loss_scale", "bfloat16"), ("lsuv", "slow_lsuv", "adam_atan2")),
        "blind_optimizer": Fitting(
            ("eps_relative", "adam_atan2", "multiply_loss"), ("lsuv", "slow_lsuv")
        ),
        "token_collapse": Fitting(
            ("small_branches", "identity_attention", "skip_attention", "pre_ln", "fewer_layers"),
            ("lsuv", "slow_lsuv", "slow_identity_attention"),
        ),
        "saturated_attention": Fitting(
            ("small_queries", "scaled_scores", "qk_norm"), (*STANDARD, "lsuv", "slow_lsuv")
        ),
        "bad_start": Fitting(("small_output", "lsuv"), (*STANDARD, "match_targets", "slow_lsuv")),
        "memory": Fitting(
            ("long_memory", "orthogonal_cell", "gates", "skip_time"), ("slow_long_memory",)
        ),
        # What can't be looked into can't be scaled by what it puts out, but drawn anew.
        "unmeasured": Fitting(
            ("contract", "solve_better", "derivative", "larger_inside"),
            ("redraw", "slow_redraw", "clip"),
        ),
        "lost_updates": Fitting(
            ("stochastic_round", "kahan_sum", "float32", "larger_rate"),
            # A rate that 16-bit parameters lose nearly whole may be far below what even float32
            # would learn at: in bfloat16 a few in a hundred of LeCun's entries move at 1e-5, and
            # networks train at 1e-3 or so.
            ("fit_rate",),
        ),
        "learning_rate": Fitting(("fit_rate",), ("less_decay", "adam_atan2", "muon")),
        # No rule has seen why.
        "does_not_learn": Fitting(
            ("another_rate", "labels", "cure"),
            (
                *STANDARD,
                "match_targets",
                "rate_by_10",
                "fit_rate",
                "less_decay",
                *_REMEMBERING,
                "lsuv",
                "slow_lsuv",
                *_REDRAWN,
                "adam_atan2",
                "muon",
            ),
        ),
    }
)
"""What fits each cause, by the rule that found it."""


def fitting(rules: Iterable[str]) -> tuple[str, ...]:
    """What fits some causes, in the order in which to try it.

    Args:
      rules: That found them.

    Returns:
      Ids of remedies, without repetition; not all can be tried.

    Example:
      >>> fitting(["blind_optimizer"])
      ('lsuv', 'slow_lsuv', 'adam_atan2', 'eps_relative', 'multiply_loss')
    """
    wanted = {name for rule in rules if rule in FITTING for name in FITTING[rule].ids}
    return tuple(name for name in REMEDIES if name in wanted)
