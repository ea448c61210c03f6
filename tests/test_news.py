"""What a child is told while it runs: only what is whole, and of that the newest."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pipeline.news import News


@pytest.fixture
def news() -> Iterator[News]:
    made = News.create()
    yield made
    for fd in made.fds:
        os.close(fd)


def test_the_newest_is_heard_once_however_long(news: News) -> None:
    assert news.hear() is None
    news.tell(b"x" * 1_000_000)
    news.tell(b"short")
    child = News(*news.fds)
    assert child.hear() == b"short" and child.hear() is None
    news.tell(b"y" * 200_000)
    assert child.hear() == b"y" * 200_000


@pytest.mark.parametrize("at", [0, 8, 12, 16])
def test_what_is_being_written_is_left_until_it_is_whole(news: News, at: int) -> None:
    news.tell(b"something")
    byte = os.pread(news.fds[0], 1, at)
    os.pwrite(news.fds[0], bytes([byte[0] ^ 1]), at)
    assert news.hear() is None
    os.pwrite(news.fds[0], byte, at)
    os.eventfd_write(news.fds[1], 1)
    assert news.hear() == b"something"
