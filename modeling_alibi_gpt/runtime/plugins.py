"""Imports user modules named in settings, such as one that registers a position method."""

import importlib
import os
import sys
from collections.abc import Sequence


def import_plugins(names: Sequence[str]) -> None:
    """Import modules by name, either installed ones or from the working directory.

    Only the user's own settings may name modules. Modules named in a checkpoint are never imported.

    Raises:
        ValueError: A module does not exist, or importing it fails.
    """
    here = os.getcwd()
    sys.path.append(here)  # installed commands do not search the working directory
    try:
        for name in names:
            _import(name)
    finally:
        sys.path.remove(here)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise ValueError(f"plugins: {name!r} needs the module {error.name!r}, which is not installed") from error
        raise ValueError(f"plugins: no module {name!r} is installed or in {os.getcwd()}") from error
    except Exception as error:  # user code may raise anything
        raise ValueError(f"plugins: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
