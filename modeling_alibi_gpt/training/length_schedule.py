"""Length warm-up: begin training with short sequences, beyond which a model with ALiBi can extrapolate."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_alibi_gpt.chunked_loss import IGNORED_LABEL
from modeling_alibi_gpt.training.experiment import DataSection


def scheduled_length(data: DataSection, num_steps_done: int) -> int:
    """Sequence length of the next step, in tokens, after ``num_steps_done`` optimizer steps."""
    end = 0
    for stage in data.train_length_schedule or ():
        end += stage.num_steps
        if num_steps_done < end:
            return stage.length_tokens
    return data.train_length_tokens


def cut_batch(batch: dict[str, Tensor], length_tokens: int) -> dict[str, Tensor]:
    """Cut a batch of ``PackedCollator`` into shorter sequences: ``(B, T)`` to ``(B * T / length_tokens, ...)``.

    Tokens and their order do not change, but the first token of each part is no longer predicted, since nothing comes
    before it. If T is not a multiple of the length, as in a batch of only the last block, padding is added.
    """
    num_missing = -batch["input_ids"].shape[1] % length_tokens
    values = {"input_ids": 0, "labels": IGNORED_LABEL, "position_ids": 0}
    parts = {
        name: F.pad(tensor, (0, num_missing), value=values[name]).reshape(-1, length_tokens)
        for name, tensor in batch.items()
    }
    if "position_ids" in parts:  # a document that began in an earlier part restarts at 0
        slots = torch.arange(length_tokens, device=parts["position_ids"].device)
        parts["position_ids"] = parts["position_ids"].minimum(slots)
    return parts
