"""Foreign text: names, paths and messages from files and other code, made fit to be shown.

A parameter's name, a path or an exception's text may hold terminal escapes, line breaks or
characters that turn the direction of writing. Whatever shows such text passes it through here.
"""

import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

__all__ = [
    "listed",
    "one_line",
    "plot_text",
    "printable",
    "printable_lines",
    "printable_tree",
    "shown",
]

LONGEST_LINE = 1000
"""No message is longer; what is foreign in it should be cut where it is put in."""

# Controls, formats (the direction of writing among them), lone surrogates, line separators.
_UNFIT = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str, most: int | None = None) -> str:
    r"""Text that a terminal shows as it is: control characters become escapes such as `\x1b`.

    Args:
      text: Any text.
      most: Cut the middle out of a longer one.

    Returns:
      One line.

    Example:
      >>> print(printable("a\x1b[31mb\r\u202ec"))
      a\x1b[31mb\r\u202ec
      >>> print(printable("w" * 100, most=20))
      wwwwwwwww...wwwwwwww
    """
    if most is not None and len(text) > most:
        text = _cut(text, most)
    if not text.isprintable():
        text = "".join(map(_escaped, text))
    return text if most is None else _cut(text, most)


def printable_lines(text: str) -> str:
    r"""The same for text of many lines: the line breaks stay.

    Example:
      >>> printable_lines("first\nsecond\x07")
      'first\nsecond\\x07'
    """
    return "\n".join(map(printable, text.split("\n")))


def printable_tree(value: Any) -> Any:
    r"""The same for every text in nested mappings and sequences, keys apart.

    Example:
      >>> printable_tree({"layers": ["a\x07"], "loss": 2.3})
      {'layers': ['a\\x07'], 'loss': 2.3}
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: printable_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_tree(item) for item in value]
    return value


def one_line(text: str, most: int = LONGEST_LINE) -> str:
    r"""A message in one line: line breaks become spaces, other control characters escapes.

    Args:
      text: The message.
      most: Cut the middle out of a longer one: what was wrong stands first, what to do last.

    Returns:
      The line.

    Example:
      >>> one_line("not an archive\nsave it anew\x07")
      'not an archive save it anew\\x07'
    """
    return printable(" ".join(text.splitlines()), most)


def listed(names: Collection[str], most: int = 10) -> str:
    """Names in a row; of many the first, and how many more there are.

    Example:
      >>> listed(["a", "b"]), listed([str(i) for i in range(20_000)], most=3)
      ('a, b', '0, 1, 2 and 19,997 more')
    """
    first = [printable(name, 40) for name, _ in zip(names, range(most), strict=False)]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(first) + more


def shown(value: object, most: int = 60) -> str:
    """A shape, a number, an exception or another value from a file, short enough for a message.

    Args:
      value: Any value; a number in it may be longer than Python likes to print.
      most: Characters.

    Returns:
      Its text, in one line.

    Example:
      >>> shown((60, 5)), len(shown((1,) * 64)), shown((10**5000, 8))
      ('(60, 5)', 60, 'a number of thousands of digits')
    """
    try:
        return one_line(str(value), most)
    except ValueError:  # Python prints no number of more than 4,300 digits.
        return "a number of thousands of digits"


def plot_text(text: str, most: int | None = None) -> str:
    r"""Text for Matplotlib, which takes what stands between two dollars for a formula.

    Args:
      text: Any text.
      most: Cut the middle out of a longer one, which would leave no room for the axes.

    Returns:
      The text, its line breaks included.

    Example:
      >>> print(plot_text("$HOME"))
      \$HOME
    """
    text = text if most is None else _cut(text, most)
    return printable_lines(text).replace("$", r"\$")


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNFIT:
        return character
    return character.encode("unicode_escape").decode()


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    kept = most - 3
    return f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
