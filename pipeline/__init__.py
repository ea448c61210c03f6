"""Stillwatch: watches video-capture rigs, one JPEG frame at a time. ARCHITECTURE.md has the map."""

__version__ = "0.1.0"
