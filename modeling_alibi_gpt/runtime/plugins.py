"""User modules named in settings, such as one that registers a position method."""

import importlib
import os
import sys
from collections.abc import Sequence


def import_plugins(names: Sequence[str]) -> None:
    """Import modules by name, from what is installed or from the working directory.

    Only a user's own settings may name them: a checkpoint that does so makes nothing run.

    Raises:
        ValueError: There is no such module, or it fails.
    """
    here = os.getcwd()
    sys.path.append(here)  # the entry of an installed command is not searched from the working directory
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
        raise ValueError(f"plugins: there is no module {name!r}, installed or in {os.getcwd()}") from error
    except Exception as error:  # it is a user's code, which may fail in any way
        raise ValueError(f"plugins: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
