"""Valid names of variants and readings of a comparison, and the folders of their runs."""

import re
from collections.abc import Iterable


MAX_NAME_CHARACTERS = 100
# Letters of any language, digits and what the names of files hold everywhere; no dot at the start, which hides them.
_NOT_IN_A_FOLDER_NAME = re.compile(r"^\.+|[^\w.,=+()%-]")


def run_folder_name(variant: str, seed: int) -> str:
    """The folder of one run, within that of its comparison whatever the variant is called."""
    return f"{_NOT_IN_A_FOLDER_NAME.sub('-', variant)}-seed{seed}"


def check_names(kind: str, names: Iterable[str]) -> None:
    """Raise a ValueError unless all names can be told apart, by people and as folders on any disk."""
    taken: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.isprintable() or name != " ".join(name.split()) or not name:
            raise ValueError(f"{kind} need printable names without spaces at their ends or two in a row, got {name!r}")
        if len(name) > MAX_NAME_CHARACTERS:
            raise ValueError(f"{kind} need names of at most {MAX_NAME_CHARACTERS} characters, got {name[:40]!r}...")
        other = taken.setdefault(run_folder_name(name, 0).casefold(), name)
        if other != name:
            raise ValueError(f"{kind} {other!r} and {name!r} would share one folder, rename one of them")
