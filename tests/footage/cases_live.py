"""Cases without a fault: ordinary footage, and everything that looks like a freeze and is none."""

from __future__ import annotations

from collections.abc import Iterator

from tests.footage.capture import Capture
from tests.footage.cases import Stock, encoding, make
from tests.footage.compose import Case, Freeze
from tests.footage.overlays import Overlay, banner, clock, cursor, logo, pointer, resting, spinner, subtitles, wandering
from tests.footage.scenes import (
    clip,
    crossfades,
    dark,
    grained,
    inset,
    low_rate,
    night,
    pan,
    photo,
    playlist,
    slow_fade,
)
from tests.footage.screens import bars, card, glow, guide, menu, slate, snow, speck


def live(stock: Stock) -> Iterator[Case]:
    """All of them."""
    yield from _ordinary(stock)
    yield from _noisy(stock)
    yield from _screens(stock)
    yield from _still(stock)
    yield from _slow(stock)
    yield from _small(stock)
    yield from _steady(stock)


def desktops(stock: Stock) -> Iterator[Case]:
    """Screen recordings: live, still, and frozen."""
    for at, scene in enumerate((*stock.busy, *stock.desktops)):
        what = scene.clips[0].removeprefix("desktop-")
        yield make(stock, "desktop", what, scene, 56, capture=Capture(quality=(70 + 8 * (at % 4), 70 + 8 * (at % 4))))
    noisy = Capture(sigma=1.5, quality=(80, 80))
    for scene in (stock.busy[0], stock.desktops[0]):
        what = scene.clips[0].removeprefix("desktop-")
        yield make(stock, "desktop", f"{what}-noisy", scene, 40, capture=noisy)
    for at, scene in enumerate(stock.busy):
        what = scene.clips[0].removeprefix("desktop-")
        event = Freeze(14, 52, kind="screen")
        capture = noisy if at else Capture()
        yield make(stock, "freeze screen", what, scene, 64, freezes=(event,), capture=capture)


def _ordinary(stock: Stock) -> Iterator[Case]:
    for at, scene in enumerate((*stock.clips, *stock.films)):
        yield make(stock, "live", scene.clips[0], scene, 40 if at == 0 else 28, kind="plain")
    overlays = (Overlay(logo()), Overlay(subtitles(), 5, 25), Overlay(banner(), 20, 24))
    yield make(stock, "live", "subtitled", stock.clip(1), 36, kind="plain", overlays=overlays)


def _noisy(stock: Stock) -> Iterator[Case]:
    captures = {
        "s2": Capture(sigma=2.0, quality=(85, 85)),
        "s3": Capture(sigma=3.0, quality=(70, 70)),
        "analogue": Capture(sigma=2.5, blur=1.5, chroma=2.0, quality=(80, 80), sampling="422"),
        "hum": Capture(sigma=1.0, hum=1.2, quality=(85, 85)),
        "quality": Capture(quality=(60, 95)),
    }
    for what, capture in captures.items():
        yield make(stock, "live noisy", f"steady-{what}", stock.steady, 22, capture=capture)
        yield make(stock, "live noisy", f"film-{what}", stock.clip(1), 22, capture=capture)
    yield make(stock, "live noisy", "grain", grained(stock.clip(1), 6.0, stock.seed), 30)
    yield make(stock, "live noisy", "grain-pan", grained(pan(photo(stock.photo(0)), 0.5), 4.0, stock.seed), 30)
    yield make(
        stock, "live noisy", "dark-q60", dark(stock.steady, 0.2), 30, capture=Capture(sigma=1.5, quality=(60, 60))
    )


def _screens(stock: Stock) -> Iterator[Case]:
    seeds = stock.seeds()
    scenes = {
        "clock": menu(next(seeds), clock()),
        "clock-small": menu(next(seeds), clock(0.9, 0.03, 0.035)),
        "spinner": menu(next(seeds), spinner()),
        "spinner-small": guide(next(seeds), spinner(0.95, 0.93, 0.03)),
        "cursor": menu(next(seeds), cursor()),
        "pointer": menu(next(seeds), pointer(wandering)),
        "resting-pointer": guide(next(seeds), pointer(resting)),
        "guide": guide(next(seeds)),
        "clock-minutes": menu(next(seeds), clock(seconds=False, start=73755)),
    }
    for at, (what, scene) in enumerate(scenes.items()):
        capture = encoding(what, sigma=(0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.5, 0.0)[at])
        yield make(
            stock,
            "screen live",
            what,
            scene,
            40 if "guide" in what or "resting" in what or "minutes" in what else 30,
            capture=capture,
        )
    noisy = Capture(sigma=2.0, quality=(80, 80))
    yield make(stock, "screen live", "clock-noisy", menu(next(seeds), clock()), 30, capture=noisy)
    yield make(stock, "screen live", "pointer-noisy", menu(next(seeds), pointer(wandering)), 30, capture=noisy)


def _still(stock: Stock) -> Iterator[Case]:
    seeds = stock.seeds()
    noisy = Capture(sigma=1.5, quality=(85, 85))
    first, second = stock.clip(0), stock.clip(1)
    parts = playlist((first, 12), (menu(next(seeds)), 45), (second, 10))
    yield make(stock, "screen still", "menu", parts, 67)
    parts = playlist((second, 12), (menu(next(seeds)), 45), (first, 10))
    yield make(stock, "screen still", "menu-noisy", parts, 67, capture=noisy)
    parts = playlist((first, 10), (slate(next(seeds)), 15), (second, 10), (photo(stock.photo(0)), 15), (first, 8))
    yield make(stock, "screen still", "slates", parts, 58, capture=noisy)
    parts = playlist((second, 10), (bars(next(seeds)), 20), (first, 10))
    yield make(stock, "screen still", "bars", parts, 40)
    blue = card(next(seeds), (255, 0, 0), "NO SIGNAL")
    yield make(stock, "screen still", "blue-card", playlist((second, 8), (blue, 20), (first, 8)), 36, capture=noisy)
    slides = crossfades([photo(stock.photo(at)) for at in range(4)], 5, 1.2)
    yield make(stock, "screen still", "slides", slides, 50)
    yield make(stock, "screen still", "slides-noisy", slides, 50, capture=noisy)


def _slow(stock: Stock) -> Iterator[Case]:
    pictures = [photo(stock.photo(at)) for at in range(6)]
    scenes = {
        "pan-025": pan(pictures[0], 0.25),
        "pan-05": pan(pictures[1], 0.5, 0.2),
        "pan-1": pan(pictures[2], 1.0),
        "zoom": pan(pictures[3], 0.0, 0.0, 0.0008),
        "pan-dark": pan(dark(pictures[4], 0.15), 0.7),
        "pan-night": pan(night(pictures[5], 45), 0.4),
        "fade": slow_fade(pictures[0], 0.5, 1.0, 40),
        "fade-dark": slow_fade(dark(pictures[1], 0.2), 0.4, 1.0, 30),
        "crossfade": crossfades(pictures[2:5], 0, 6),
        "clouds": stock.clouds,
    }
    for what, scene in scenes.items():
        yield make(stock, "slow", what, scene, 26)
    for what in ("pan-025", "pan-dark", "fade", "clouds", "zoom"):
        capture = Capture(sigma=2.0, quality=(80, 80))
        yield make(stock, "slow", f"{what}-noisy", scenes[what], 22, capture=capture)


def _small(stock: Stock) -> Iterator[Case]:
    seeds = stock.seeds()
    for sigma in (0.0, 1.5):
        capture = encoding(f"small {sigma}", sigma=sigma)
        yield make(stock, "small motion", f"speck-s{sigma}", speck(next(seeds)), 32, capture=capture)
        yield make(stock, "small motion", f"glow-s{sigma}", glow(next(seeds)), 32, capture=capture)
    yield make(stock, "small motion", "snow", snow(next(seeds)), 24)
    yield make(stock, "low rate", "2-per-second", low_rate(stock.clip(0), 3), 30)
    yield make(stock, "low rate", "1-per-second", low_rate(stock.clip(1), 5), 30)


def _steady(stock: Stock) -> Iterator[Case]:
    """Real footage with so little motion that the mean over the frame hardly changes."""
    place = stock.steady
    scenes = {
        "clean": place,
        "later": clip(place.clips[0], 12),
        "dim": dark(place, 0.4, bars=False),
        "night": night(place, 70),
        "bars": dark(stock.clip(1), 0.35),
        "window": inset(photo(stock.photo(2)), stock.clip(1), (0.7, 0.1, 0.92, 0.34)),
        "window-menu": inset(menu(stock.seed + 50), place, (0.6, 0.55, 0.95, 0.9)),
        "window-guide": inset(guide(stock.seed + 50), stock.clip(0), (0.02, 0.03, 0.2, 0.22)),
        "studio": inset(night(photo(stock.photo(3)), 150), stock.clip(1), (0.35, 0.3, 0.65, 0.9)),
        "halved": low_rate(place, 2),
    }
    for at, (what, scene) in enumerate(scenes.items()):
        capture = encoding(f"steady {what}", sigma=(0.0, 0.0, 1.0)[at % 3])
        yield make(stock, "live steady", what, scene, 30, capture=capture)
