"""docs/faults.md names every row of the fault table, and tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT

ROWS = 60
_LINE = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]*)\|$", re.MULTILINE)
_TEST = re.compile(r"`(test_\w+\.py)::(\w+)`")
TABLE = {int(row[0]): row for row in _LINE.findall((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))}
NAMED = sorted({test for row in TABLE.values() for test in _TEST.findall(row[2])})


def test_every_row_is_there_and_has_a_test() -> None:
    assert sorted(TABLE) == list(range(1, ROWS + 1))
    assert not [number for number, row in TABLE.items() if not _TEST.search(row[2])]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_exists(file: str, name: str) -> None:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^(def {name}\(|{name} = )", text, re.MULTILINE), f"{file} has no {name}"
