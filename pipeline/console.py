"""What a person reads in a terminal: tables and progress bars. Plain text when the output is piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; numbers stand on the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    content = [[str(cell) for cell in row] for row in rows]
    for at, column in enumerate(columns):
        numeric = all(row[at][:1].isdigit() for row in content) and bool(content)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in content:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)


def say(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")


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
