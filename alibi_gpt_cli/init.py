"""``alibi-gpt init``."""

import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer


CONFIGS = Path(__file__).with_name("configs")
# Settings of reports on records that only a checkout has.
LEFT_OUT = "report"


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder 'configs' is written here.")],
) -> None:
    """Write example settings for the other commands, to run as they are or to change.

    alibi-gpt init mine && cd mine && alibi-gpt train --config configs/experiment/demo.yaml
    """
    target = folder / "configs"
    if target.exists():
        raise ValueError(f"{target} already exists; choose another folder, or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".configs-") as beside:
        written = shutil.copytree(CONFIGS, Path(beside) / "configs", ignore=shutil.ignore_patterns(LEFT_OUT))
        num_files = sum(path.is_file() for path in written.rglob("*"))
        written.rename(target)
    here = shlex.quote(str(folder))
    print(f"{num_files} files in {target}; try: cd {here} && alibi-gpt train --config configs/experiment/demo.yaml")
