"""The files that belong to a checkpoint beside its weights and config: known by name, and never code."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from modeling_alibi_gpt.runtime.parsing import read_mapping


LICENCE_FILES = (
    *("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt"),
    *("NOTICE", "NOTICE.md", "NOTICE.txt", "USE_POLICY.md"),
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    *("tokenizer.json", _TOKENIZER_CONFIG, "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
COMPANION_FILES = ("README.md", *LICENCE_FILES, "generation_config.json", *TOKENIZER_FILES)
# Not one of them, but what they accompany.
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


def companion_files(folder: Path, names: Sequence[str] = COMPANION_FILES) -> list[Path]:
    """Those of the named files that a checkpoint folder has.

    Raises:
        ValueError: One is a link to a file elsewhere, or the tokenizer is code.
    """
    paths = [folder / name for name in names if (folder / name).is_file() or (folder / name).is_symlink()]
    for path in paths:
        refuse_link(path)
        if path.name == _TOKENIZER_CONFIG and (code := read_mapping(path).get("auto_map")):
            raise ValueError(
                f"{path}: the tokenizer is code ({code}), which does not travel; save one of transformers' own"
            )
    return paths


def copy_licences(source: Path, folder: Path) -> None:
    """Copy the licence files of a checkpoint folder. Raises a ``ValueError`` for one that is a link."""
    for path in companion_files(source, LICENCE_FILES):
        shutil.copyfile(path, folder / path.name)


def refuse_link(path: Path) -> None:
    """Raise a ``ValueError`` for a symbolic link, by which a private file would be published under another's name.

    In the Hub's cache every file of a snapshot is a link, to one of the files that were downloaded with it.
    """
    if not path.is_symlink():
        return
    folder, file = path.parent.resolve(), path.resolve()
    if folder.parent.name == "snapshots" and file.parent == folder.parent.parent / "blobs" and file.is_file():
        return
    raise ValueError(f"{path} is a symbolic link to {file}; put the file itself there, or leave it out")
