"""The commands' options: parsed and checked before anything heavy is imported."""

import argparse
import difflib
import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from vanishjax.foreign import one_line

# Written out, since importing the modules that define them costs seconds; a test compares.
ACTIVATIONS = (
    "centered_sigmoid",
    "elu",
    "erf",
    "gelu",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
)
INITIALIZERS = ("lecun", "he", "critical_orthogonal", "critical_normal")
USUAL_INIT = "lecun"

# What stands in the JSON of most commands.
COMMON_FIELDS = {
    "command": "its name",
    "environment": "versions of Python and the packages, and the device",
    "interrupted": "whether a signal cut it short",
    "seconds": "how long it took, compilation included",
}

_FIRST_STEPS = """\
First steps:
  vanishjax compare --quick        how deep optimizers train, in a minute
  vanishjax diagnose net.py:make   your own network; diagnose --help says how
  vanishjax cure net.py:make       what makes it train, tried on it
  python -m vanishjax.examples     scripts to read, run and change"""
_WIDEST = 98

# A slip of the finger beyond it would fill the memory before any check of ours could speak.
MOST_LAYERS = 100_000


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Says what was wrong and ends with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """An argument that must be one of some names; an error suggests the nearest."""

    def parse(text: str) -> str:
        name = text.strip().lower().replace("-", "_")
        if name in known:
            return name
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise argparse.ArgumentTypeError(
            f"unknown {kind} {text!r}: {hint}known: {', '.join(known)}"
        )

    return parse


def joined(names: Sequence[str]) -> str:
    """Names as prose: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def file_path(text: str) -> str:
    """A file or folder; no name at all would be taken for the current folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return text


def list_of(
    parse_item: Callable[[str], Any], *, distinct: bool = False
) -> Callable[[str], tuple[Any, ...]]:
    """A comma-separated list of arguments; `distinct` drops what was there before."""

    def parse(text: str) -> tuple[Any, ...]:
        items = [item for item in text.split(",") if item.strip()]
        if not items:
            raise argparse.ArgumentTypeError(f"expected a comma-separated list, got {text!r}")
        parsed = [parse_item(item) for item in items]
        return tuple(dict.fromkeys(parsed) if distinct else parsed)

    return parse


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number from `least` to `most`, by default what fits a 32-bit integer."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            limit = f"of at least {least}" if value < least else f"of at most {most:,}"
            raise argparse.ArgumentTypeError(f"expected a whole number {limit}, got {text!r}")
        return value

    return parse


def number(
    least: float = -math.inf, below: float = math.inf, *, above: float | None = None
) -> Callable[[str], float]:
    """A finite number in [least, below), or in (above, below)."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        large_enough = value >= least if above is None else value > above
        if not (large_enough and value < below):
            lower = f"at least {least:g}" if above is None else f"above {above:g}"
            upper = "" if below == math.inf else f" and below {below:g}"
            raise argparse.ArgumentTypeError(f"expected a number {lower}{upper}, got {text!r}")
        return value

    return parse


def add_source_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options that choose the data."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=file_path,
        default="digits",
        metavar="NAME|PATH",
        help="digits (comes with the package), mnist, fashion_mnist, an .npz file, or a folder "
        "of IDX files (default: digits)",
    )
    group.add_argument(
        "--data-dir",
        type=file_path,
        metavar="DIR",
        help="folder that holds the data set's files, instead of a download",
    )
    return group


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose, split and order the data."""
    group = add_source_options(parser)
    group.add_argument(
        "--validation-split",
        type=number(below=1.0, above=0.0),
        default=0.2,
        metavar="FRACTION",
        help="part of the training data kept for validation (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=whole(1),
        default=64,
        metavar="N",
        help="examples a step (default: %(default)s)",
    )


def add_output_options(parser: argparse.ArgumentParser, files: str) -> None:
    """Options that say where results go."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=file_path,
        metavar="DIR",
        help=f"folder for {files} (default: the next free one under runs/)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace results that --out already holds"
    )
    group.add_argument(
        "--json", action="store_true", help="print the result as JSON on standard output"
    )


def add_network_options(parser: argparse.ArgumentParser, activation: str) -> None:
    """Options that all networks share."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--activation",
        type=one_of("activation", ACTIVATIONS),
        default=activation,
        metavar="NAME",
        help=f"of the hidden layers: {', '.join(ACTIVATIONS)} (default: {activation})",
    )
    add_residual_option(group)


def add_residual_option(parser: argparse._ActionsContainer) -> None:
    """The option of skip connections."""
    parser.add_argument(
        "--residual",
        type=one_of("residual", ("scaled", "rezero")),
        metavar="KIND",
        help="skip connections: scaled (branches times 1/sqrt(layers)) or rezero (default: none)",
    )


def add_init_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The option that says how the kernels start."""
    parser.add_argument(
        "--init",
        type=one_of("initializer", INITIALIZERS),
        default=default,
        metavar="NAME",
        help="of the kernels: lecun (Flax's own), he, critical_orthogonal or critical_normal, at "
        f"which gradients keep their size (default: {USUAL_INIT})",
    )


def add_width_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how many hidden layers there are and how wide they are."""
    parser.add_argument(
        "--hidden",
        type=list_of(whole(1)),
        metavar="WIDTHS",
        help="widths of the hidden layers, such as 64,32 (the default)",
    )
    parser.add_argument(
        "--depth",
        type=whole(1, MOST_LAYERS),
        metavar="D",
        help="number of hidden layers, instead of --hidden",
    )
    parser.add_argument(
        "--width", type=whole(1), metavar="W", help="their width, with --depth (default: 64)"
    )


def hidden_widths(options: argparse.Namespace) -> tuple[int, ...]:
    """The widths that the options of `add_width_options` say; raises ValueError on a clash."""
    if options.depth is not None:
        if options.hidden is not None:
            raise ValueError("--depth and --hidden both say how many layers there are; give one")
        return (options.width or 64,) * options.depth
    if options.width is not None:
        raise ValueError("--width goes with --depth; --hidden lists the widths itself")
    return options.hidden or (64, 32)


def make_parser(commands: Sequence[Any]) -> Parser:
    """The whole parser, from the command modules.

    Each has NAME, HELP, FIELDS (what the keys of its JSON hold), add_options and run.
    """
    from rich_argparse import RawDescriptionRichHelpFormatter

    parser = Parser(
        prog="vanishjax",
        description="Keeps deep networks learning where gradients vanish.",
        epilog=_FIRST_STEPS,
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", parser_class=Parser)
    for command in commands:
        sub = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=_folded(command.__doc__),
            epilog=_json_guide(command.FIELDS),
            formatter_class=RawDescriptionRichHelpFormatter,
        )
        command.add_options(sub)
        sub.set_defaults(run=command.run, parser=sub)
    return parser


def _columns() -> int:
    return min(_WIDEST, shutil.get_terminal_size().columns - 2)


def _folded(text: str) -> str:
    """Paragraphs as wide as the terminal; lines that begin with a space are kept."""
    paragraphs: list[str] = []
    for line in text.strip().splitlines():
        goes_on = paragraphs and paragraphs[-1] and not paragraphs[-1].startswith(" ")
        if goes_on and line and not line.startswith(" "):
            paragraphs[-1] += f" {line}"
        else:
            paragraphs.append(line)
    return "\n".join(
        line if line.startswith(" ") else textwrap.fill(line, _columns()) for line in paragraphs
    )


def _json_guide(fields: Mapping[str, str]) -> str:
    """What the JSON holds, a paragraph for each key."""
    width = max(map(len, fields)) + 4
    lines = ["JSON (null where a number isn't finite):"]
    for name, text in fields.items():
        first = f"  {name}".ljust(width)
        filled = textwrap.fill(
            text, _columns(), initial_indent=first, subsequent_indent=" " * width
        )
        lines.append(filled)
    return "\n".join(lines)


def warn(message: str) -> None:
    """One line on standard error."""
    print("vanishjax:", one_line(message), file=sys.stderr)
