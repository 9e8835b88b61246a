"""What attention does to a sequence: positions that become alike, weights that become one-hot."""

from __future__ import annotations

import numpy as np

from vanishjax.health.advice import advised
from vanishjax.health.examination import Examination
from vanishjax.health.finding import Finding, feeding

# Share of the energy that the last kernel takes in, of what tells positions apart. Of the networks
# tried the least among those that train at full size is .0105 (post-LN, 12 layers), at width 16
# .0004; the largest among those that stay at the unigram loss is 7e-7 (post-LN, 40 layers). What a
# kernel puts out misleads: BERT's attention puts out 3e-5 and trains.
COLLAPSED_TOKENS = 3e-4

# The share that tells positions from the middle between their neighbors, over the same at the first
# such kernel: attention that looks back leaves what changes slowly along the sequence, of which the
# share above still finds 2e-3 in six layers of it alone. Without skips four layers with MLPs are at
# 3e-5 and four of attention alone at 8e-6, and lose most of what they could learn; two, at 1e-3,
# learn; post-LN, 12 layers, is at 3e-3; attention over a graph, 24 layers, stays at chance at 5e-5
# to 1.2e-4, and no network of the zoo that trains is below 2e-3. What else than attention mixes
# positions (a graph's neighbors) may well leave what changes slowly, so there the share above must
# be small as well.
COLLAPSED_DETAIL = 2e-4
_NEARLY_COLLAPSED = 10 * COLLAPSED_TOKENS

# Where what has been mixed is pooled, or one position alone is read, its mean may be enough. It was
# for 12 layers without skips, with .1 of the energy that tells inputs apart left; 8 and 10 layers
# with 1e-4, 1.5e-3 and .025 of it stay near chance. Of those that train with skips none has less
# than 3e-2 left of what tells positions apart.
_ALIKE, _INPUTS_ALIKE = 1e-6, 0.05

# Share of the softmaxes' rows that are all but one-hot. Causal attention
# has one in its first row, 1/T of them; queries and keys 30 times too large have nearly all.
SATURATED_ROWS = 0.5

# A network that is this far below the best constant output has learned something: what its
# attention does, it does on purpose.
_LEARNED = 0.9


def token_collapse(seen: Examination) -> Finding | None:
    """All positions of a sequence arrive at the same point."""
    probe = seen.probe
    mixed = bool(probe.softmaxes or probe.choices) or probe.token_energy < _NEARLY_COLLAPSED
    smooth = mixed and probe.token_detail < COLLAPSED_DETAIL
    if not probe.token_energy < COLLAPSED_TOKENS and not smooth:
        return None
    last = probe.token_layer == len(probe) - 1
    name = probe.names[probe.token_layer]
    inputs = float(probe.centered_energy[probe.token_layer])
    learned = probe.loss < _LEARNED * probe.constant_loss
    lost = probe.token_energy < _ALIKE and inputs < _INPUTS_ALIKE and not learned
    if probe.token_energy < COLLAPSED_TOKENS:
        share, what = probe.token_energy, "the positions of a sequence apart"
    else:
        share, what = probe.token_detail, "a position of a sequence from its neighbors"
    cause = (
        f"Only {share:.1e} of the energy that {name} takes in tells {what}: attention has mixed "
        "them until all are alike"
    )
    if last:
        cause += ", so every position gets the same prediction."
    elif lost:
        cause += f", and {inputs:.1e} tells inputs apart, so nearly all get the same prediction."
    else:
        cause += (
            ". What comes after looks at one position or their mean, and may train all the same."
        )
    return Finding(
        "token_collapse",
        "critical" if last or lost else "note",
        (name,),
        {
            "token_energy": probe.token_energy,
            "token_detail": probe.token_detail,
            "limit": COLLAPSED_TOKENS,
        },
        cause,
        advised("token_collapse", probe),
    )


def saturated_attention(seen: Examination) -> Finding | None:
    """Softmaxes whose rows are one-hot, through which next to no gradient flows."""
    probe = seen.probe
    shares = np.array([share for _, share in probe.softmaxes])
    if not len(shares) or not np.mean(shares) > SATURATED_ROWS:
        return _saturated_choices(seen)
    learned = probe.loss < _LEARNED * probe.constant_loss
    return Finding(
        "saturated_attention",
        "note" if learned else "critical",
        feeding(probe.softmaxes, SATURATED_ROWS),
        {"one_hot_rows": float(np.mean(shares)), "limit": SATURATED_ROWS},
        f"{np.mean(shares):.0%} of the softmaxes' rows look at one position alone, so next to no "
        "gradient gets to the queries and keys"
        + (", as may be right in a network that has learned." if learned else "."),
        advised("saturated_attention", probe),
    )


def _saturated_choices(seen: Examination) -> Finding | None:
    """Softmaxes of what one kernel puts out, as of a router: what is chosen trains all the same."""
    names = feeding(seen.probe.choices, SATURATED_ROWS)
    if not names:
        return None
    share = float(np.mean([one for _, one in seen.probe.choices if one > SATURATED_ROWS]))
    return Finding(
        "saturated_attention",
        "warning",
        names,
        {"one_hot_rows": share, "limit": SATURATED_ROWS},
        f"{share:.0%} of the rows of a softmax choose one entry alone, so next to no gradient gets "
        f"to {names[0]} before it. What is chosen trains.",
        advised("saturated_attention", seen.probe),
    )
