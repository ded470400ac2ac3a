"""General metadata of a GGUF file: name, size and license of the model."""

from pathlib import Path
from typing import Any

from modeling_alibi_gpt.checkpoints.model_card import read_card


def add_metadata(writer: Any, folder: Path, name: str | None, num_parameters: int) -> None:
    """Add name, size label and the license in the model card, if any, to a ``gguf.GGUFWriter``.

    Args:
        writer: The writer.
        folder: Checkpoint folder.
        name: Name of the model; None uses the ``model_name`` of its card, or the name of the folder.
        num_parameters: Number of parameters, with tied ones counted once.

    Raises:
        ValueError: The model card cannot be read.
    """
    from gguf.utility import size_label

    card = read_card(folder).data
    writer.add_type("model")
    writer.add_name(name or _text(card.get("model_name")) or folder.resolve().name)
    writer.add_size_label(size_label(num_parameters, num_parameters, 0, 0))
    writer.add_license(_text(card.get("license")))
    writer.add_license_name(_text(card.get("license_name")))
    writer.add_license_link(_text(card.get("license_link")))


def _text(value: Any) -> str:
    """A field of a model card as text; some have several values. "" is not written."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(str(each) for each in values if each is not None)
