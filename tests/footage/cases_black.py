"""Cases with black pictures, and with dark ones that are not black."""

from __future__ import annotations

from collections.abc import Iterator

from tests.footage.capture import Capture
from tests.footage.cases import Stock, encoding, make
from tests.footage.clips import Frame
from tests.footage.compose import Black, Case
from tests.footage.draw import write
from tests.footage.overlays import Draw, Overlay, banner, clock, logo, subtitles, volume
from tests.footage.scenes import dark, night, pan, photo, playlist
from tests.footage.screens import card, credit_cards, credits_roll, ember, floating_text, night_street


def blacks(stock: Stock) -> Iterator[Case]:
    """All of them."""
    yield from _plain(stock)
    yield from _levels(stock)
    yield from _lit(stock)
    yield from _fades(stock)
    yield from _zaps(stock)
    yield from _dark(stock)
    yield from _cards(stock)


def _plain(stock: Stock) -> Iterator[Case]:
    for at, scene in enumerate(stock.clips):
        event = Black(7 + at, 20 + at)
        yield make(stock, "black", scene.clips[0], scene, 28, kind="plain", blacks=(event,))
    yield make(stock, "black", "long", stock.films[0], 50, kind="plain", blacks=(Black(10, 42),))
    yield make(stock, "black", "to-the-end", stock.films[1], 36, kind="plain", blacks=(Black(8),))


def _levels(stock: Stock) -> Iterator[Case]:
    event = (Black(8, 20),)
    for at, sigma in enumerate((1.0, 2.0, 4.0)):
        capture = encoding(f"black {sigma}", sigma=sigma)
        yield make(stock, "black noise", f"s{sigma}", stock.clip(at), 26, blacks=event, capture=capture)
    for at, pedestal in enumerate((16, 24, 32, 40)):
        capture = encoding(f"pedestal {pedestal}", pedestal=pedestal, sigma=(0.0, 1.0, 0.0, 1.5)[at])
        what = f"{pedestal}"
        yield make(stock, "black raised", what, stock.clip(at), 26, blacks=event, capture=capture)
    capture = Capture(pedestal=16, sigma=3.0, quality=(75, 75))
    yield make(stock, "black raised", "16-noisy", stock.clip(1), 26, blacks=event, capture=capture)
    capture = Capture(pedestal=28, sigma=2.5, blur=1.5, chroma=2.0, quality=(80, 80), sampling="422")
    yield make(stock, "black raised", "28-analogue", stock.clip(2), 26, blacks=event, capture=capture)
    capture = Capture(pedestal=20, sigma=1.5, hum=1.0, flicker=0.5, quality=(85, 85))
    yield make(stock, "black raised", "20-hum", stock.clip(0), 26, blacks=event, capture=capture)
    mute = (Black(8, 20, level=16),)
    yield make(stock, "black raised", "muted-16", stock.clip(1), 26, blacks=mute)


def _lit(stock: Stock) -> Iterator[Case]:
    shown = {
        "logo": (logo(),),
        "logo-large": (logo(0.8, 0.08, "CHANNEL"),),
        "clock": (clock(),),
        "banner": (banner(),),
        "volume": (volume(),),
        "subtitles": (subtitles(),),
        "all": (logo(), clock(0.05, 0.05), subtitles()),
    }
    for at, (what, draws) in enumerate(shown.items()):
        pedestal, sigma = ((0, 0.0), (16, 1.0), (0, 1.5), (0, 1.0), (16, 0.0), (0, 0.0), (16, 1.5))[at]
        capture = encoding(what, pedestal=pedestal, sigma=sigma)
        overlays = tuple(Overlay(draw) for draw in draws)
        if what in ("banner", "volume"):
            overlays = tuple(Overlay(draw, 8, 14) for draw in draws)
        yield make(
            stock, "black lit", what, stock.clip(at), 27, blacks=(Black(8, 21),), overlays=overlays, capture=capture
        )


def _fades(stock: Stock) -> Iterator[Case]:
    for at, (out_s, in_s) in enumerate(((1.0, 1.0), (3.0, 2.0), (6.0, 6.0))):
        event = Black(12, 22, fade_out_s=out_s, fade_in_s=in_s)
        capture = encoding(f"fade {out_s}", sigma=(0.0, 1.5, 0.0)[at], pedestal=(0, 0, 16)[at])
        yield make(stock, "black fades", f"{out_s}", stock.clip(at), 34, blacks=(event,), capture=capture)
    event = Black(10, 22, fade_out_s=2.0, fade_in_s=2.0)
    yield make(stock, "black fades", "dark", dark(stock.clip(0), 0.25), 34, blacks=(event,))


def _zaps(stock: Stock) -> Iterator[Case]:
    for at, (sigma, pedestal) in enumerate(((0.0, 0), (1.5, 16))):
        lengths = (0.6, 1.4, 2.4, 4.0, 7.0)
        scenes = [(stock.clip(n + at) if n % 2 else stock.films[n // 2 % 3], 10.0) for n in range(6)]
        events = tuple(
            Black(10.0 * (n + 1) - 0.4 * n, 10.0 * (n + 1) + length, kind="zap") for n, length in enumerate(lengths)
        )
        shown = tuple(
            Overlay(banner(f"{n + 2}  Channel {n + 2}", n), 10.0 * (n + 1) + 0.4, 10.0 * (n + 1) + 5) for n in range(5)
        )
        capture = encoding(f"zap {at}", sigma=sigma, pedestal=pedestal)
        yield make(
            stock, "zap", f"{at}", playlist(*scenes), 62, blacks=events, overlays=shown if at else (), capture=capture
        )
    plain = playlist(*((stock.clip(n), 8.0) for n in range(5)))
    yield make(
        stock, "zap", "cuts", plain, 40, overlays=tuple(Overlay(banner(), 8.0 * n, 8.0 * n + 4) for n in range(1, 5))
    )


def _dark(stock: Stock) -> Iterator[Case]:
    seeds = stock.seeds()
    scenes = {
        "film-15": dark(stock.clip(0), 0.15),
        "film-10": dark(stock.clip(1), 0.10),
        "film-20": dark(stock.clip(2), 0.20),
        "night-40": night(stock.clip(0), 40),
        "night-25": night(stock.steady, 30),
        "street": night_street(next(seeds)),
        "street-few": night_street(next(seeds), 25),
        "ember": ember(next(seeds)),
        "credits": credits_roll(next(seeds)),
        "credit-cards": credit_cards(next(seeds)),
        "pan": pan(dark(photo(stock.photo(2)), 0.1), 2.0),
    }
    for at, (what, scene) in enumerate(scenes.items()):
        capture = encoding(f"dark {what}", sigma=(0.0, 1.5)[at % 2], pedestal=(0, 0, 16)[at % 3])
        yield make(stock, "dark live", what, scene, 24, capture=capture)
    both = playlist((dark(stock.clip(0), 0.15), 10), (dark(stock.clip(0), 0.15), 12), (stock.clip(1), 10))
    yield make(stock, "dark live", "with-black", both, 36, blacks=(Black(14, 26),))


def _cards(stock: Stock) -> Iterator[Case]:
    seeds = stock.seeds()
    film, other = stock.clip(0), stock.clip(1)
    cards = {
        "blue": card(next(seeds), (255, 0, 0)),
        "dark-blue": card(next(seeds), (190, 0, 0)),
        "navy": card(next(seeds), (90, 0, 0)),
        "grey": card(next(seeds), (60, 60, 60)),
        "floating": floating_text(next(seeds), (160, 0, 0), "NO SIGNAL"),
    }
    for at, (what, scene) in enumerate(cards.items()):
        capture = encoding(f"card {what}", sigma=(0.0, 1.0)[at % 2])
        yield make(stock, "card", what, playlist((film, 8), (scene, 16), (other, 6)), 30, capture=capture)
    event = Black(8, 22, kind="no signal", known=None)
    overlays = (Overlay(_no_signal(), 8, 22),)
    yield make(stock, "card", "black-text", film, 30, blacks=(event,), overlays=overlays)


def _no_signal() -> Draw:
    def draw(frame: Frame, _: int) -> None:
        write(frame, "No signal", 0.36, 0.44, 0.1)

    return draw
