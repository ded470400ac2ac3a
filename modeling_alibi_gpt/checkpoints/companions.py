"""Files that accompany the weights and config of a checkpoint. They are known by name and are never code."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import CHAT_TEMPLATE_DIR, GENERATION_CONFIG_NAME, logging

from modeling_alibi_gpt.data.tokenizer_files import tokenizer_from_pretrained
from modeling_alibi_gpt.runtime.atomic import write_json
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code


logger = logging.get_logger(__name__)


LICENSE_FILES = (
    *("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt"),
    *("NOTICE", "NOTICE.md", "NOTICE.txt", "USE_POLICY.md"),
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.*.json", _TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
    # Vocabularies. Where one is missing, transformers builds a tokenizer of a few default tokens without an error.
    *("vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "bpe.codes", "byte_maps.json", "dict.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"),
    *("spm_char.model", "tiktoken.model", "tekken.json", "prophetnet.tokenizer"),
    *("source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "entity_vocab.json"),
    *("emoji.json", "normalizer.json", "word_shape.json", "word_pronunciation.json"),
    # The templates of a tokenizer with several; the folder is known by name and its files by their suffix.
    f"{CHAT_TEMPLATE_DIR}/*.jinja",
)
COMPANION_FILES = ("README.md", *LICENSE_FILES, GENERATION_CONFIG_NAME, *TOKENIZER_FILES)
# The weights themselves, which are not companion files.
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
# What a config and a generation config both hold. A conversion writes it to the config of every model.
_IN_BOTH_CONFIGS = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")


def companion_files(folder: Path, names: Sequence[str] = COMPANION_FILES) -> list[Path]:
    """The files in a checkpoint folder that have one of the names, or match one with ``*``.

    Raises:
        ValueError: A file or its folder is a link to another location, or the tokenizer has custom code.
    """
    named = [path for name in names for path in (sorted(folder.glob(name)) if "*" in name else [folder / name])]
    paths = [path for path in named if path.is_file() or path.is_symlink()]
    for path in paths:
        if path.parent != folder:
            refuse_link(path.parent)
        refuse_link(path)
        if path.name == _TOKENIZER_CONFIG and (code := read_mapping(path).get("auto_map")):
            raise ValueError(
                f"{path}: the tokenizer has custom code ({code}), which is not copied; save a tokenizer of "
                "transformers instead"
            )
    return paths


def name_tokenizer_class(source: Path, folder: Path) -> None:
    """Record the class of a copied tokenizer, which has its special tokens, if its own files do not tell it."""
    path = folder / _TOKENIZER_CONFIG
    fields = read_mapping(path) if path.is_file() else {}
    if "tokenizer_class" in fields or not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    try:
        with trusting_remote_code(False):
            tokenizer = tokenizer_from_pretrained(str(source))
    except Exception as error:  # tokenizers raises a bare Exception for a damaged file
        logger.warning("the tokenizer of %s is copied, but cannot be loaded (%s)", source, error)
        return
    write_json(path, fields | {"tokenizer_class": type(tokenizer).__name__})


def keep_generation_settings(source: Path, folder: Path) -> None:
    """Write to a new generation config the settings in the config of a source that has no generation config.

    transformers takes them from there then, but the configs that it writes have none.
    """
    fields, converted = (read_mapping(path / "config.json") for path in (source, folder))
    names = GenerationConfig().to_dict().keys() - {*_IN_BOTH_CONFIGS, "transformers_version"}
    settings = {name: value for name, value in fields.items() if name in names and value is not None}
    if settings and not (folder / GENERATION_CONFIG_NAME).is_file():
        in_both = {name: converted.get(name) for name in _IN_BOTH_CONFIGS}
        write_json(folder / GENERATION_CONFIG_NAME, settings | in_both)


def let_generate_follow(overrides: Mapping[str, Any], folder: Path) -> None:
    """Write to a copied generation config the overrides that it holds too, and that the cache is used by default."""
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return
    written, known = read_mapping(path), GenerationConfig().to_dict()
    changed = {} if written.get("use_cache", True) else {"use_cache": True}
    changed |= {name: value for name, value in overrides.items() if name in known}
    if changed:
        write_json(path, written | changed)


def copy_licenses(source: Path, folder: Path) -> None:
    """Copy the license files of a checkpoint folder. Raises a ``ValueError`` if one is a link."""
    copy_files(companion_files(source, LICENSE_FILES), source, folder)


def copy_files(paths: Iterable[Path], source: Path, folder: Path) -> None:
    """Copy files of the folder ``source`` to the same places in another folder."""
    for path in paths:
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def written_files(folder: Path) -> list[str]:
    """The paths of all files in a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refuse_link(path: Path) -> None:
    """Raise a ``ValueError`` for a symbolic link, which could publish a private file under another name.

    Links in the Hub's cache are allowed: every file of a snapshot links to a downloaded file.
    """
    if not path.is_symlink():
        return
    file = path.resolve()
    for folder in path.parent.resolve().parents[:2]:  # of a snapshot, or of a folder in it
        if folder.name == "snapshots" and file.parent == folder.parent / "blobs" and file.is_file():
            return
    raise ValueError(f"{path} is a symbolic link to {file}; replace it with the file itself, or remove it")
