"""Which numbered files there are: kept as ranges of numbers, dropped one by one."""

from __future__ import annotations

import random
import time

import pytest

from pipeline.stock import Stock, as_they_came

S = 10**9


def drain(stock: Stock) -> list[tuple[int, bool]]:
    """The numbers in the order in which they go, and whether each was still the file of its name."""
    found = []
    while stock.count:
        (number, _), _, current = stock.drop_oldest()
        found.append((number, current))
    return found


def test_numbers_go_in_the_order_in_which_they_came() -> None:
    stock = Stock(S)
    for number in range(1, 100):
        stock.add((number, 9), number * S // 5, 10)
    assert (stock.count, stock.bytes, stock.oldest, stock.newest) == (99, 990, (1, 9), (99, 9))
    assert len(stock._ranges) < 25, "a range holds what came within one grain"
    assert drain(stock) == [(number, True) for number in range(1, 100)]
    assert (stock.count, stock.bytes, stock.oldest, stock.newest) == (0, 0, None, (99, 9))


def test_a_range_is_as_old_as_the_last_that_came_into_it() -> None:
    stock = Stock(2 * S)
    for number, second in enumerate((1, 2, 4)):
        stock.add((number, 9), second * S)
    assert stock.oldest_ns == 2 * S
    stock.drop_oldest()
    assert stock.oldest_ns == 2 * S
    stock.drop_oldest()
    assert stock.oldest_ns == 4 * S


def test_what_has_come_again_is_not_deleted_under_its_old_age() -> None:
    """FFmpeg started again at 1: its second frame 1 has replaced the first."""
    stock = Stock(S)
    for number in (*range(1, 6), *range(1, 4)):
        stock.add((number, 9), 0)
    assert drain(stock) == [(1, False), (2, False), (3, False), (4, True), (5, True), (1, True), (2, True), (3, True)]


def test_a_number_of_another_width_is_another_file() -> None:
    stock = Stock(S)
    stock.add((7, 9), 0)
    stock.add((7, 4), 0)
    assert stock.has((7, 9)) and stock.has((7, 4)) and not stock.has((7, 5))
    assert drain(stock) == [(7, True), (7, True)]


def test_what_is_not_known_is_told_at_one_look_at_each() -> None:
    """Milliseconds as numbers: as many ranges as files. Asked one by one, 20,000 took longer than a child may hang."""
    stock = Stock(S)
    names = [(1_795_336_670_000 + 200 * n, 13) for n in range(20_000)]
    for name in names[:10_000]:
        stock.add(name, 0)
    before_s = time.process_time()
    assert stock.unknown_of({*names, (7, 4)}) == {(7, 4), *names[10_000:]}
    assert time.process_time() - before_s < 2.0


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ({1: 10, 2: 20, 3: 30}, [1, 2, 3]),
        ({1: 10, 2: 10, 3: 10}, [1, 2, 3]),  # copied in at once
        ({1: 50, 2: 60, 3: 30, 4: 40}, [3, 4, 1, 2]),  # began anew at 1
        ({1: 90, 2: 60, 3: 70, 4: 30, 5: 40}, [4, 5, 2, 3, 1]),  # and once more
        ({1: 10, 2: 30, 3: 20, 4: 40}, [1, 2, 3, 4]),  # the clock was set back a little
        ({1: 30, 2: 90, 3: 10, 4: 60, 5: 20, 6: 80, 7: 40}, [1, 2, 3, 4, 5, 6, 7]),  # copied in any order
        ({1: 50, 2: 0, 3: 60, 4: 30}, [4, 1, 2, 3]),  # one has gone
        ({1: -5, 2: -9, 3: -7}, [2, 3, 1]),  # before 1970
        ({number: 1000 - number for number in range(100)}, list(range(100))),  # no times of recordings
        ({}, []),
    ],
)
def test_files_of_an_earlier_run_came_first(times: dict[int, int], order: list[int]) -> None:
    came = as_they_came([(number, 9) for number in times], lambda frame: times[frame[0]])
    assert [number for number, _ in came] == order


def test_one_name_over_and_over_is_one_file() -> None:
    stock = Stock(S)
    for second in range(50):
        stock.add((1, 9), second * S, 10)
    assert (stock.count, stock.bytes) == (1, 10)


def test_sizes_add_up_whatever_comes_and_goes() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance, stock, number = random.Random(seed), Stock(S), 0
    for turn in range(3000):
        if chance.random() < 0.6:
            number = number + 1 if chance.random() < 0.95 else chance.randrange(2000)
            stock.add((number, 9), turn * S // 10, chance.randrange(5000))
        elif stock.count:
            stock.drop_oldest()
        if stock.count and chance.random() < 0.1:
            stock.weigh(chance.randrange(3000))
        assert stock.bytes == sum(known.bytes for known in stock._ranges)
        assert stock.count == sum(known.count for known in stock._ranges)
    drain(stock)
    assert (stock.bytes, stock.count) == (0, 0)
