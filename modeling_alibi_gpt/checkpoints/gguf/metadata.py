"""What a GGUF file says about its model to people: its name, its size and its licence."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load

from modeling_alibi_gpt.checkpoints.companions import companion_files


CARD = "README.md"


def add_metadata(writer: Any, folder: Path, name: str | None, num_parameters: int) -> None:
    """Add name, size label and, where the model card of the folder says so, licence to a ``gguf.GGUFWriter``.

    Args:
        writer: What is written to.
        folder: Of the checkpoint.
        name: Of the model; None takes the ``model_name`` of its card, or the name of the folder.
        num_parameters: Of the model, tied ones counted once.

    Raises:
        ValueError: The model card cannot be read.
    """
    from gguf.utility import size_label

    card = _read_card(folder)
    writer.add_type("model")
    writer.add_name(name or _text(card.get("model_name")) or folder.resolve().name)
    writer.add_size_label(size_label(num_parameters, num_parameters, 0, 0))
    writer.add_license(_text(card.get("license")))
    writer.add_license_name(_text(card.get("license_name")))
    writer.add_license_link(_text(card.get("license_link")))


def _read_card(folder: Path) -> dict[str, Any]:
    cards = companion_files(folder, [CARD])
    try:
        return (metadata_load(cards[0]) if cards else None) or {}
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{cards[0]}: what its lines of --- enclose is no YAML mapping ({reason})") from error


def _text(value: Any) -> str:
    """A field of a model card, of which some hold several values; "" is none, and is not written."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(str(each) for each in values if each is not None)
