"""Valid names of variants and readings of a comparison, and the folders of their runs."""

import re
from collections.abc import Iterable


MAX_NAME_CHARACTERS = 100
EXPERIMENT_FILE = "experiment.json"  # the settings of a training, in its folder
# Letters of any language, digits and characters that all file systems allow; no leading dot, which hides a file.
_SEED = re.compile(r"-seed\d+$")
_NOT_IN_A_FOLDER_NAME = re.compile(r"^\.+|[^\w.,=+()%-]")


def run_folder_name(variant: str, seed: int) -> str:
    """A safe folder name for one run, whatever the name of its variant."""
    return f"{_NOT_IN_A_FOLDER_NAME.sub('-', variant)}-seed{seed}"


def without_seed(name: str) -> str:
    """The name of a run's folder, or of the model in it, without the seed."""
    return _SEED.sub("", name)


def check_names(kind: str, names: Iterable[str]) -> None:
    """Raise a ValueError unless all names are printable and distinct, also as folders on any file system."""
    taken: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.isprintable() or name != " ".join(name.split()) or not name:
            raise ValueError(f"{kind} need printable names without leading, trailing or double spaces, got {name!r}")
        if len(name) > MAX_NAME_CHARACTERS:
            raise ValueError(f"{kind} need names of at most {MAX_NAME_CHARACTERS} characters, got {name[:40]!r}...")
        other = taken.setdefault(run_folder_name(name, 0).casefold(), name)
        if other != name:
            raise ValueError(f"{kind} {other!r} and {name!r} would share one folder: rename one of them")
