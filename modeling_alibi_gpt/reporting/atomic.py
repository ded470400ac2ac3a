"""Files that are replaced as a whole: readers see the old content or the new, never a part."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | Path, obj: Any) -> None:
    """Replace a JSON file as a whole, indented for people. Raises ``ValueError`` on NaN or infinity."""
    write_text(path, to_json(obj, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Replace a UTF-8 text file as a whole."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file as a whole: write beside it, then rename. A failure leaves the old file and nothing else."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def to_json(obj: Any, indent: int | None = None) -> str:
    """JSON of finite numbers alone. Raises ``ValueError``, which names the kind of a record, on anything else."""
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        what = f"a {obj['kind']} record" if isinstance(obj, dict) and "kind" in obj else "a record"
        raise ValueError(f"{what} cannot be written ({error}); write null where a number is not finite") from error
