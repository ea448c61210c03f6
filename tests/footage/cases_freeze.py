"""Cases with a frozen source: byte for byte, under noise, re-encoded, behind something that moves, in the dark."""

from __future__ import annotations

from collections.abc import Iterator

from tests.footage.capture import Capture
from tests.footage.cases import Stock, encoding, make
from tests.footage.compose import Case, Freeze
from tests.footage.overlays import Overlay, clock, logo, spinner, ticker, volume
from tests.footage.scenes import Scene, dark, grained, inset, night, pan, photo, playlist
from tests.footage.screens import ember, menu, night_street

TURBO = {"encoder": "turbo"}


def freezes(stock: Stock) -> Iterator[Case]:
    """All of them."""
    yield from _byte_for_byte(stock)
    yield from _under_noise(stock)
    yield from _re_encoded(stock)
    yield from _behind(stock)
    yield from _short(stock)
    yield from _dark(stock)
    yield from _screens(stock)


def _byte_for_byte(stock: Stock) -> Iterator[Case]:
    for at, scene in enumerate(stock.clips):
        event = Freeze(11 + at, 25 + at, repeat=True, kind="bytes")
        capture = Capture(quality=(60 + 10 * at, 60 + 10 * at), sampling="422" if at % 2 else "420")
        name = _name(scene)
        yield make(stock, "freeze bytes", name, scene, 36, kind="plain", freezes=(event,), capture=capture)
    long = Freeze(12, 54, repeat=True, kind="bytes")
    noisy = Capture(sigma=1.5, quality=(75, 75))
    yield make(stock, "freeze bytes", "long", stock.clip(0), 66, kind="plain", freezes=(long,), capture=Capture())
    yield make(stock, "freeze bytes", "long-noisy", stock.clip(1), 66, kind="plain", freezes=(long,), capture=noisy)
    to_the_end = Freeze(8, repeat=True, kind="bytes")
    yield make(
        stock, "freeze bytes", "to-the-end", stock.films[0], 45, kind="plain", freezes=(to_the_end,), capture=noisy
    )


def _under_noise(stock: Stock) -> Iterator[Case]:
    for sigma in (1, 2, 3):
        for at in range(3):
            scene = stock.clip(at + sigma)
            what = f"s{sigma}-{_name(scene)}"
            event = Freeze(8 + at, 20 + at)
            yield make(
                stock, "freeze noise", what, scene, 28, freezes=(event,), capture=encoding(what, sigma=float(sigma))
            )
    harsh = {
        "analogue": Capture(sigma=2.5, blur=1.5, chroma=2.0, quality=(80, 80), sampling="422"),
        "analogue-coarse": Capture(sigma=2.0, blur=4.0, chroma=1.5, quality=(90, 90), sampling="422"),
        "hum": Capture(sigma=1.0, hum=1.2, quality=(85, 85)),
        "flicker": Capture(sigma=1.5, flicker=0.6, quality=(75, 75)),
        "jitter": Capture(sigma=1.0, jitter=0.12, quality=(88, 88)),
        "q60": Capture(sigma=3.0, quality=(60, 60)),
    }
    for at, (what, capture) in enumerate(harsh.items()):
        yield make(stock, "freeze noise", what, stock.clip(at), 28, freezes=(Freeze(9, 21),), capture=capture)
    long = Freeze(12, 56)
    yield make(stock, "freeze noise", "long", stock.clip(0), 68, freezes=(long,), capture=Capture(sigma=2.0))
    yield make(stock, "freeze noise", "long-steady", stock.steady, 68, freezes=(long,), capture=Capture(sigma=2.5))


def _re_encoded(stock: Stock) -> Iterator[Case]:
    for at in range(3):
        capture = Capture(quality=(60, 95), sampling="420" if at % 2 else "422", sigma=0.7 * (at == 2))
        scene = stock.clip(at)
        yield make(stock, "freeze quality", _name(scene), scene, 28, freezes=(Freeze(9, 21),), capture=capture)


def _behind(stock: Stock) -> Iterator[Case]:
    over = {
        "clock": (Overlay(clock()),),
        "clock-small": (Overlay(clock(0.05, 0.06, 0.035)), Overlay(logo())),
        "ticker": (Overlay(ticker()),),
        "ticker-fast": (Overlay(ticker(0.91, 41.0, (20, 20, 90))), Overlay(logo()), Overlay(clock())),
        "spinner": (Overlay(spinner(), first_s=12),),
        "spinner-small": (Overlay(spinner(0.93, 0.9, 0.03)),),
        "volume": (Overlay(volume(), 14, 18),),
    }
    for at, (what, overlays) in enumerate(over.items()):
        capture = encoding(what, sigma=(0.0, 1.5, 0.0, 1.0, 0.0, 2.0, 0.0)[at])
        event = Freeze(11, 23, kind=f"behind {what}")
        yield make(
            stock, "freeze behind", what, stock.clip(at), 30, freezes=(event,), overlays=overlays, capture=capture
        )
    long = (Freeze(12, 56, kind="behind clock"),)
    overlays = over["clock"]
    yield make(stock, "freeze behind", "clock-long", stock.clip(0), 68, freezes=long, overlays=overlays)
    long = (Freeze(12, 56, kind="behind ticker"),)
    noisy = Capture(sigma=1.5, quality=(80, 80))
    overlays = over["ticker"]
    yield make(stock, "freeze behind", "ticker-long", stock.clip(1), 68, freezes=long, overlays=overlays, capture=noisy)


def _short(stock: Stock) -> Iterator[Case]:
    lengths = (0.8, 1.0, 1.4, 2.0, 3.0, 1.2, 5.0)
    for at, sigma in enumerate((0.0, 1.5)):
        events = tuple(Freeze(4 + 5.4 * n, 4 + 5.4 * n + length, kind="stutter") for n, length in enumerate(lengths))
        capture = Capture(sigma=sigma, quality=(82, 82))
        yield make(stock, "freeze short", f"s{sigma}", stock.clip(at), 46, freezes=events, capture=capture)


def _dark(stock: Stock) -> Iterator[Case]:
    seed = next(stock.seeds())
    scenes: dict[str, Scene] = {
        "film-15": dark(stock.clip(0), 0.15),
        "film-10": dark(stock.clip(1), 0.10),
        "night-40": night(stock.clip(2), 40),
        "street": night_street(seed),
        "ember": ember(seed),
        "pan": pan(dark(photo(stock.photo(1)), 0.12), 1.5),
    }
    for at, (what, scene) in enumerate(scenes.items()):
        capture = encoding(what, sigma=(0.0, 1.5, 1.0, 1.0, 0.5, 2.0)[at])
        yield make(stock, "freeze dark", what, scene, 28, freezes=(Freeze(9, 21, kind="dark"),), capture=capture)


def _screens(stock: Stock) -> Iterator[Case]:
    seed = next(stock.seeds())
    window = inset(menu(seed), stock.clip(0), (0.52, 0.2, 0.94, 0.62))
    noisy = Capture(sigma=1.0, quality=(85, 85))
    event = Freeze(10, 24, kind="inset")
    yield make(stock, "freeze inset", "film", window, 34, freezes=(event,))
    window = inset(menu(seed + 1), stock.steady, (0.55, 0.1, 0.95, 0.5))
    yield make(stock, "freeze inset", "steady", window, 34, freezes=(event,), capture=noisy)
    ticking = menu(seed + 2, clock())
    event = Freeze(14, 54, kind="screen")
    yield make(stock, "freeze screen", "clock", ticking, 64, freezes=(event,))
    for sigma in (0.0, 1.0):
        grain = grained(stock.clip(1), 5.0, seed)
        capture = encoding(f"grain {sigma}", sigma=sigma)
        yield make(
            stock, "freeze grain", f"s{sigma}", grain, 34, freezes=(Freeze(10, 24, kind="grain"),), capture=capture
        )
    mixed = playlist(
        (stock.clip(0), 10), (menu(seed + 3), 12), (stock.clip(1), 10), (photo(stock.photo(0)), 8), (stock.clip(2), 30)
    )
    event = Freeze(46, 58)
    yield make(stock, "freeze mixed", "programme", mixed, 66, freezes=(event,), capture=noisy)


def _name(scene: Scene) -> str:
    return scene.clips[0]
