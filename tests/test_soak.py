"""The soak's own judgement: what it calls growth. The soak itself is a command: python -m tests.soak --minutes 3."""

from __future__ import annotations

import random

from tests.soak_measure import Gauge, Sample, theil_sen, trend

CHANCE = random.Random(1)
CALM = [(float(second), 20.0 + CHANCE.gauss(0, 0.3)) for second in range(0, 600, 5)]


def sample(at_s: float, pid: int, age_s: float, uss_mb: float, descriptors: int = 16) -> Sample:
    return Sample(at_s, "worker/0", pid, age_s, 50.0, 25.0, uss_mb, descriptors)


def test_noise_and_a_few_wild_points_are_no_growth() -> None:
    wild = [(second, value + 30.0 * (n % 7 == 3)) for n, (second, value) in enumerate(CALM)]
    assert trend("a", "MB", CALM, 1.0).flat
    assert trend("a", "MB", wild, 1.0).flat


def test_a_leak_under_noise_is_found() -> None:
    leaking = [(second, value + second * 2 / 600) for second, value in CALM]
    found = trend("a", "MB", leaking, 1.0)
    assert not found.flat
    assert 1.5 < found.growth < 2.5


def test_too_few_points_say_nothing() -> None:
    assert theil_sen([(0.0, 1.0)]) == 0.0
    assert trend("a", "MB", [], 1.0).flat
    assert trend("a", "MB", [(0.0, 1.0), (1.0, 100.0)], 1.0).flat


def test_generations_are_compared_at_one_age() -> None:
    # Given a child that grows with age, and whose every generation begins with 2 MB more
    gauge = Gauge()
    for generation in range(4):
        for age in range(1, 60, 5):
            at_s = 60.0 * generation + age
            gauge.samples.append(sample(at_s, 100 + generation, age, 20.0 + age + 2 * generation))
        gauge.quiet.append(sample(60.0 * generation, 100 + generation, 59, 20.0, 16 + generation))
    # Then both are told: the memory, and the descriptors when all was quiet
    memory, descriptors = gauge.trends((), ("worker/0",))
    assert (memory.points, round(memory.growth), memory.flat) == (4, 6, False)
    assert (descriptors.points, round(descriptors.growth), descriptors.flat) == (4, 3, False)
