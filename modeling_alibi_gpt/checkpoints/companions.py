"""Files that accompany the weights and config of a checkpoint. They are known by name and are never code."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils import logging

from modeling_alibi_gpt.runtime.atomic import write_json
from modeling_alibi_gpt.runtime.parsing import read_mapping


logger = logging.get_logger(__name__)


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
# The weights themselves, which are not companion files.
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


def companion_files(folder: Path, names: Sequence[str] = COMPANION_FILES) -> list[Path]:
    """The files in a checkpoint folder that have one of the names.

    Raises:
        ValueError: A file is a link to another location, or the tokenizer has custom code.
    """
    paths = [folder / name for name in names if (folder / name).is_file() or (folder / name).is_symlink()]
    for path in paths:
        refuse_link(path)
        if path.name == _TOKENIZER_CONFIG and (code := read_mapping(path).get("auto_map")):
            raise ValueError(
                f"{path}: the tokenizer has custom code ({code}), which is not copied; save a tokenizer of "
                "transformers instead"
            )
    return paths


def name_tokenizer_class(source: Path, folder: Path) -> None:
    """Record the class of a copied tokenizer, which has its special tokens, if only the source's model type tells."""
    path = folder / _TOKENIZER_CONFIG
    fields = read_mapping(path) if path.is_file() else {}
    if "tokenizer_class" in fields or not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a bare Exception for a damaged file
        logger.warning("the tokenizer of %s is copied, but cannot be loaded (%s)", source, error)
        return
    write_json(path, fields | {"tokenizer_class": type(tokenizer).__name__})


def copy_licences(source: Path, folder: Path) -> None:
    """Copy the license files of a checkpoint folder. Raises a ``ValueError`` if one is a link."""
    for path in companion_files(source, LICENCE_FILES):
        shutil.copyfile(path, folder / path.name)


def refuse_link(path: Path) -> None:
    """Raise a ``ValueError`` for a symbolic link, which could publish a private file under another name.

    Links in the Hub's cache are allowed: every file of a snapshot links to a downloaded file.
    """
    if not path.is_symlink():
        return
    folder, file = path.parent.resolve(), path.resolve()
    if folder.parent.name == "snapshots" and file.parent == folder.parent.parent / "blobs" and file.is_file():
        return
    raise ValueError(f"{path} is a symbolic link to {file}; replace it with the file itself, or remove it")
