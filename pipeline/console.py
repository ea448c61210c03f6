"""What a person reads in a terminal: tables and progress bars. Plain text when the output is piped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.model import printable

PIPED_COLUMNS = 1000
"""Width of what is piped: wide enough that nothing is cut off, for whoever looks for an id in it."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """As for all other output: `__main__` knows what it means."""
        raise BrokenPipeError


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; numbers stand on the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    content = [[printable(str(cell)) for cell in row] for row in rows]
    for at, column in enumerate(columns):
        numeric = all(row[at][:1].isdigit() for row in content) and bool(content)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in content:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console = _Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS)
    if console.measure(table, options=console.options.update(width=PIPED_COLUMNS)).maximum > console.width:
        table.box, table.padding = None, (0, 1, 0, 0)  # a narrow terminal: no lines, before anything is cut off
    console.print(table)


def utf8(text: str) -> str:
    """An argument's type: text that can be printed and stand in JSON."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("must be valid UTF-8") from error
    return text


def duration(seconds: float) -> str:
    """`3 d 4 h`, `4 h 12 min`, `12 min 5 s`, `5 s`."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts, rest = [], int(seconds)
    for unit, length in units:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def clear() -> None:
    """An empty terminal."""
    Console().clear()


def say(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(printable(text) + "\n")


def item(head: str, text: str, style: str, *, whole: bool = False) -> None:
    """A line that begins with `head`, in this style. On a terminal, what is too long goes on below the text, unless it
    is to stay `whole`: a command that somebody copies."""
    if not sys.stdout.isatty():
        say(f"{head}{text}".rstrip())
        return
    line = Text(printable(head), style=style)
    if whole:
        _Console(highlight=False).print(line + Text(printable(text)), soft_wrap=True)
        return
    grid = Table.grid()
    grid.add_column(width=len(line), no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(line, Text(printable(text)))
    _Console(highlight=False).print(grid)


def progress() -> Progress:
    """A progress bar on standard error, shown only on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _style(cell: str) -> str:
    return {"yes": "green", "NO": "bold red"}.get(cell, "")
