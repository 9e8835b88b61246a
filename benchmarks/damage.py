"""Damaged files of every kind that the package reads: is each read right, or refused in one line?

The damage is that of the tests, from a seed: bits, bytes and lengths, and fields whose checksums
are right. A traceback, a message of many lines, a hang or memory beyond a bound ends the run with
an error, so that what is written has only these ends: "right", the content of the whole file;
"other", a whole file that says something else, which only a format without a checksum lets through;
and "refused", in one line.

    python -m benchmarks damage
    python -m benchmarks.damage --kinds npz_bytes npz_headers --files 20000
"""

import time
from collections.abc import Callable

from benchmarks import record
from tests.fuzzing import Tally

FILES, SEED = 2_000, 1


def damage_checkpoints(count: int, seed: int) -> Tally:
    """Checkpoints of a run."""
    from tests.training import test_fuzz_checkpoints

    return test_fuzz_checkpoints.damage_checkpoints(count, seed)


def damage_journals(count: int, seed: int) -> Tally:
    """Journals of an atlas."""
    from tests.cli import test_fuzz_journals

    return test_fuzz_journals.damage_journals(count, seed)


def kinds() -> dict[str, Callable[[int, int], Tally]]:
    """For every kind of file what damages so many of them, from a seed."""
    from tests import test_fuzz_files

    others = {"checkpoint": damage_checkpoints, "journal": damage_journals}
    return {**test_fuzz_files.KINDS, **others}


def main() -> None:
    """Damages files and writes damage.json."""
    known = kinds()
    parser = record.parser(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=known, default=[*known], help="of files")
    parser.add_argument("--files", type=int, help=f"in all kinds together (default: {FILES:,})")
    options = parser.parse_args()
    files = options.files or (10 * len(known) if options.quick else FILES)
    each = -(-files // len(options.kinds))
    results = {}
    for kind in options.kinds:
        started = time.perf_counter()
        tally = known[kind](each, SEED)
        results[kind] = {
            "tried": tally.total(),
            **{end: tally[end] for end in sorted(tally)},
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(f"{kind}: {tally}", flush=True)
    settings = {"kinds": options.kinds, "files_of_each_kind": each, "seed": SEED}
    record.write("damage", options.out, {**settings, "quick": options.quick}, results)


if __name__ == "__main__":
    main()
