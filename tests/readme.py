"""The README's tables of numbers, for the tests that compare them with what is really printed."""

from __future__ import annotations

import re

from tests.support import ROOT


def section(title: str) -> str:
    """The text under a heading, without its sub-headings' text cut off."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of all table rows that begin with a name in backticks."""
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_in(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def names(title: str) -> set[str]:
    """What stands in backticks in the first column."""
    return {name for row in rows(title) for name in names_in(row[0])}
