"""What a GGUF file says about its model to people: its name, its size and its licence."""

from pathlib import Path
from typing import Any

from modeling_alibi_gpt.checkpoints.model_card import read_card


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

    card = read_card(folder).data
    writer.add_type("model")
    writer.add_name(name or _text(card.get("model_name")) or folder.resolve().name)
    writer.add_size_label(size_label(num_parameters, num_parameters, 0, 0))
    writer.add_license(_text(card.get("license")))
    writer.add_license_name(_text(card.get("license_name")))
    writer.add_license_link(_text(card.get("license_link")))


def _text(value: Any) -> str:
    """A field of a model card, of which some hold several values; "" is none, and is not written."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(str(each) for each in values if each is not None)
