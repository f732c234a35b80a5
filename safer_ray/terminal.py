"""What the commands write: tables by rich, and lines as they are, whatever the terminal's width and their letters."""

from __future__ import annotations

from rich.console import Console

out = Console()
err = Console(stderr=True)


def say(line: str) -> None:
    """Print a line to read, to search or to parse: not wrapped, not coloured, brackets no markup."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def warn(line: str, style: str | None = None) -> None:
    """Print such a line on standard error, in ``style`` if one is given."""
    err.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


__all__ = ["err", "out", "say", "warn"]
