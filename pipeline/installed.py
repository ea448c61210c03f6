"""Where an installed service has its things, and whose places a command means when it is told of none."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from pipeline import config
from pipeline.model import ConfigError
from pipeline.settings import Settings

CONFIG_FILE = "/etc/stillwatch/stillwatch.toml"
CREDENTIALS_DIR = "/etc/stillwatch/credentials"
DIRECTORIES = {"RUNTIME_DIRECTORY": "/run/stillwatch", "STATE_DIRECTORY": "/var/lib/stillwatch"}
BOARD = "/run/stillwatch/board"
_FLAGS = ("runtime_dir", "state_dir")
_VARIABLES = (*DIRECTORIES, *(config.ENVIRONMENT_PREFIX + flag.upper() for flag in _FLAGS))
WHICH = "default: of the installed service; where there is none, where `run` would put it"


def environment_of_unit(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment with what the unit adds to it."""
    return {**DIRECTORIES, **environment}


def settings_for_reading(arguments: argparse.Namespace) -> Settings:
    """The settings of the service that is to be looked at, for the flags --config, --runtime-dir and --state-dir, as
    far as a command has them. Where neither they nor a variable name a place: those of the installed service, if there
    is one. Raises ConfigError."""
    flags = {key: value for key in _FLAGS if (value := getattr(arguments, key, None))}
    if flags or arguments.config or any(os.environ.get(name) for name in _VARIABLES):
        environment = environment_of_unit(os.environ) if arguments.config == CONFIG_FILE else os.environ
        return config.load(arguments.config, environment, flags)
    if not os.path.exists(CONFIG_FILE) and not os.path.exists(BOARD):
        return config.load(None, os.environ, {})
    environment = environment_of_unit(os.environ)
    try:
        return config.load(CONFIG_FILE, environment, {})
    except ConfigError as error:
        unseen = isinstance(error.__cause__, PermissionError | FileNotFoundError)
        if not unseen and not os.path.exists(BOARD):
            raise
        return config.load(None, environment, {})  # what runs began before the mistake was made
