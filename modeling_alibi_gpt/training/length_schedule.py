"""Length warm-up: a training that begins with short sequences, which a model with ALiBi can read past later."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_alibi_gpt.data.packing import IGNORED_LABEL
from modeling_alibi_gpt.training.experiment import DataSection


def scheduled_length(data: DataSection, num_steps_done: int) -> int:
    """Length in tokens of the sequences of the next step, after so many optimizer steps."""
    end = 0
    for stage in data.train_length_schedule or ():
        end += stage.num_steps
        if num_steps_done < end:
            return stage.length_tokens
    return data.train_length_tokens


def cut_batch(batch: dict[str, Tensor], length_tokens: int) -> dict[str, Tensor]:
    """A batch of ``PackedCollator`` as more and shorter sequences: ``(B, T)`` to ``(B * T / length_tokens, ...)``.

    Tokens and their order stay; the first token of each part is predicted no more, since nothing comes before it.
    Where T is no multiple, as in a batch of the last block alone, padding is added.
    """
    num_missing = -batch["input_ids"].shape[1] % length_tokens
    values = {"input_ids": 0, "labels": IGNORED_LABEL, "position_ids": 0}
    parts = {
        name: F.pad(tensor, (0, num_missing), value=values[name]).reshape(-1, length_tokens)
        for name, tensor in batch.items()
    }
    if "position_ids" in parts:  # those of a document that began in the part before start at 0 again
        slots = torch.arange(length_tokens, device=parts["position_ids"].device)
        parts["position_ids"] = parts["position_ids"].minimum(slots)
    return parts
