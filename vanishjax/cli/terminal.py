"""The terminal: the one way to it, which takes no text for markup or for its own commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from vanishjax.foreign import printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress


class Terminal(Console):
    """A console on which `[x]` is text, and so is every control character.

    Args:
      stderr: Whether it is standard error.
      quiet: Whether it shows nothing at all.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as it is; a character that the terminal's encoding hasn't got is a question mark."""
        shown = printable_lines(text).encode(self.encoding, "replace")
        return super().render_str(shown.decode(self.encoding), **options)

    def progress(self) -> Progress:
        """A bar with what is done, of how many, for how long and for how long still.

        It goes when all is done; where nobody looks there is none.
        """
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self,
            transient=True,
            disable=not self.is_terminal,
        )
