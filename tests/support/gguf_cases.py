"""Shared parts of the GGUF tests: the sizes of a small model with grouped queries, and its export."""

from pathlib import Path

from gguf import GGUFReader

from modeling_alibi_gpt.checkpoints.gguf.export import export_gguf


SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 80,
}


def export(folder: Path, **fields) -> GGUFReader:
    export_gguf(folder / "model", folder / "model.gguf", **fields)
    return GGUFReader(folder / "model.gguf")
