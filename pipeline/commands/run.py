"""`run`: the service, with its settings from the command line, the environment and the file."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import setproctitle

from pipeline import config
from pipeline.child import HANDLED_SIGNALS, set_up_logging
from pipeline.instance import sole_instance
from pipeline.model import ConfigError, Exit, describe
from pipeline.service import Service
from pipeline.settings import Settings
from pipeline.store import r2_settings

EPILOG = """\
examples:
  ./stillwatch run --source stb1=/srv/frames/stb1 --source tv2=/srv/frames/tv2
  ./stillwatch run --config /etc/stillwatch.toml --workers 3 --cpus 1-3

Settings come from the command line, over the environment (STILLWATCH_WORKERS, ...), over the file, over the defaults.
Exit codes: 0 stopped by a signal, 75 another instance uses this runtime directory, 78 the configuration is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `run`. A flag that is not given leaves the setting to environment, file and default."""
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        help="settings in TOML: [[source]] tables with name and dir, and any key below",
    )
    add(
        "--source",
        metavar="NAME=DIR",
        action="append",
        help="watch this directory (repeatable); replaces the file's",
    )
    add("--workers", metavar="N|auto", help="processes that judge frames, 1-64 (auto: usable cores - 1)")
    add("--cpus", metavar="LIST", help="cores to pin them to, like 1-3 (default: all usable but the first)")
    add(
        "--startup-frames",
        type=int,
        metavar="N",
        help="frames without a sidecar judged at start (default 10)",
    )
    add("--strict", action="store_true", default=None, help="a directory that does not exist is an error")
    add("--poll", action="store_true", default=None, help="probe for frames instead of using inotify")
    add("--state-dir", metavar="DIR", help="incident log and evidence, on disk")
    add("--runtime-dir", metavar="DIR", help="lock and board; one instance per directory")
    add("--log-file", metavar="FILE", help="log there instead of standard error; may be rotated")
    add("--metrics-file", metavar="FILE", help="write metrics for Prometheus there, as NAME.prom")
    add("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="default INFO")
    add(
        "--report-every",
        type=float,
        metavar="S",
        dest="report_every_s",
        help="self-report period (default 60)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit code."""
    before = signal.signal(signal.SIGTERM, _end_at_once)
    try:
        return _serve(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM before there is a supervisor to answer it: FFmpegs that do not say what they can are not waited for."""
    raise SystemExit(Exit.OK)


def _serve(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    set_up_logging("supervisor", settings.log_level, settings.log_file)
    _refuse_lost_metrics(settings.metrics_file)
    setproctitle.setproctitle("stillwatch: supervisor")
    with sole_instance(settings):
        service = Service(settings, lambda: _load(arguments))
        try:
            return service.supervisor.run()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)  # a second one must not break the stop ladder
            service.close()


def _load(arguments: argparse.Namespace) -> Settings:
    """The settings, checked as far as that can be done before any child starts. Raises ConfigError."""
    settings = config.load(arguments.config, os.environ, flags_of(arguments))
    if not settings.source:
        raise ConfigError("source: none given; add --source NAME=DIR or a [[source]] table in --config FILE")
    r2_settings(os.environ, os.environ.get("CREDENTIALS_DIRECTORY"))  # raises here what the uploader would stop with
    return settings


def _refuse_lost_metrics(path: str) -> None:
    """Raises ConfigError when there is no directory for the metrics file. Asked at the start only: one that goes later
    is waited for."""
    if not path:
        return
    try:
        os.stat(os.path.join(os.path.dirname(path), ""))
    except OSError as error:
        raise ConfigError(f"metrics_file: {path}: {describe(error)}; make its directory, or name another") from error


def flags_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    names = {field for field in Settings.__struct_fields__ if field != "source"}
    flags = {key: value for key, value in vars(arguments).items() if key in names and value is not None}
    if "workers" in flags:
        with suppress(ValueError):
            flags["workers"] = int(flags["workers"])
    if arguments.source:
        flags["source"] = [_parse_source(text) for text in arguments.source]
    return flags


def _parse_source(text: str) -> dict[str, str]:
    name, equals, directory = text.partition("=")
    if not equals or not directory:
        raise ConfigError(f"command line: --source {text!r}: write it as NAME=DIR")
    return {"name": name, "dir": directory}
