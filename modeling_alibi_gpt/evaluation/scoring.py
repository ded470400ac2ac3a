"""Loss of a causal language model on every token of a stream, with bounded memory, on any number of processes."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from modeling_alibi_gpt.cache_argument import cache_name
from modeling_alibi_gpt.checkpoints.load import train_context_length
from modeling_alibi_gpt.evaluation.windows import Window, plan_windows
from modeling_alibi_gpt.runtime.distributed import hides_progress, process_state, raise_on_all_ranks


# Size limit of one float32 tensor of logits, or of attention scores or mask over all heads.
MAX_TENSOR_BYTES = 256 * 2**20
# Errors of a model that cannot handle a length: a table that ends, a shape mismatch, out of memory.
_MODEL_FAILURES = (ValueError, IndexError, RuntimeError, MemoryError)
# RoPE scalings whose frequencies depend on the length of the call, so windows cannot be split into chunks.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, kw_only=True)
class WindowScores:
    """The loss of every prediction of a stream, and the windows in which they were made.

    Attributes:
        length_tokens: Window length L.
        windows: The W windows, in order.
        token_nats: ``(N-1,)`` float64; entry i is the loss on token ``i + 1``.
    """

    length_tokens: int
    windows: Sequence[Window]
    token_nats: np.ndarray

    @property
    def window_nats(self) -> np.ndarray:
        """Loss ``(W,)`` float64, summed over the scored tokens of each window."""
        return np.array([self.token_nats[window.scored].sum() for window in self.windows])

    @property
    def window_num_tokens(self) -> np.ndarray:
        """Number of scored tokens of each window, ``(W,)`` int64."""
        return np.array([window.num_scored for window in self.windows])

    @property
    def position_nats(self) -> np.ndarray:
        """Loss ``(L,)`` float64 by position, summed over windows. Position p predicts from p + 1 tokens."""
        return np.bincount(self._positions(), weights=self.token_nats, minlength=self.length_tokens)

    @property
    def position_num_tokens(self) -> np.ndarray:
        """Number of windows that score each position, ``(L,)`` int64."""
        return np.bincount(self._positions(), minlength=self.length_tokens)

    def _positions(self) -> np.ndarray:
        return np.concatenate([np.arange(window.first_scored, window.num_inputs) for window in self.windows])


def score_stream(
    model: PreTrainedModel,
    stream_ids: Tensor | np.ndarray,
    *,
    length_tokens: int,
    protocol: str,
    stride_tokens: int | None = None,
    batch_tokens: int = 16384,
    device: torch.device | str | None = None,
) -> WindowScores:
    """Score every token of a stream except the first exactly once.

    Batches of windows are distributed over the processes of ``accelerate launch``, unless the model itself is: then
    every process scores all of them. Every process returns the same scores, which do not depend on the number of
    processes.

    Args:
        model: A causal language model; it sees only the current window.
        stream_ids: ``(N,)`` token ids.
        length_tokens: Window length L. All lengths score the same tokens.
        protocol: ``nonoverlapping`` or ``sliding`` (see ``plan_windows``).
        stride_tokens: Stride of ``sliding``, L // 4 by default.
        batch_tokens: Maximum tokens per call of the model; reduced if logits or attention would be too large.
        device: Device to move the model to; None leaves it in place.

    Raises:
        ValueError: The protocol, the stride or the stream is invalid, or the model fails at this length. A failure in
            one process is raised in all, with the message of the first.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    ids = torch.as_tensor(stream_ids, dtype=torch.long)
    windows = plan_windows(len(ids), length_tokens=length_tokens, protocol=protocol, stride_tokens=stride_tokens)
    batch_size, chunk_tokens = plan_calls(model.config, length_tokens, batch_tokens)
    token_nats = torch.zeros(len(ids) - 1)

    def score(batch: list[Window]) -> None:
        _score_batch(model, ids, batch, chunk_tokens, token_nats)

    _share(model, _make_batches(windows, batch_size), score, protocol, length_tokens, device)
    token_nats = _gathered(model, token_nats)
    return WindowScores(length_tokens=length_tokens, windows=windows, token_nats=token_nats.double().numpy())


def score_tails(
    model: PreTrainedModel,
    sequences: Tensor | np.ndarray,
    num_scored: int,
    *,
    batch_tokens: int = 16384,
    device: torch.device | str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score the last tokens of each sequence, given all tokens before them. Distributed like ``score_stream``.

    Args:
        model: A causal language model.
        sequences: ``(N, L)`` token ids.
        num_scored: Number S of scored tokens, below L.
        batch_tokens: Maximum tokens per call of the model; reduced if logits or attention would be too large.
        device: Device to move the model to; None leaves it in place.

    Returns:
        The loss ``(N, S)`` float64 in nats, and whether each token was the most likely one ``(N, S)`` bool.

    Raises:
        ValueError: The model fails at this length.
    """
    ids = torch.as_tensor(sequences, dtype=torch.long)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    first_scored = inputs.shape[1] - num_scored
    batch_size, chunk_tokens = plan_calls(model.config, inputs.shape[1], batch_tokens)
    scored = torch.zeros(2, len(ids), num_scored)

    def score(rows: Tensor) -> None:
        for chunk, logits in _chunk_logits(model, inputs[rows].to(model.device), first_scored, chunk_tokens):
            kept = slice(max(chunk.start, first_scored), chunk.stop)
            logits = logits[:, kept.start - chunk.start :]
            expected = targets[rows, kept].to(model.device)
            tail = slice(kept.start - first_scored, kept.stop - first_scored)
            scored[0, rows, tail] = nn.functional.cross_entropy(logits.mT, expected, reduction="none").cpu()
            scored[1, rows, tail] = (logits.argmax(-1) == expected).float().cpu()

    _share(model, torch.arange(len(ids)).split(batch_size), score, "texts", ids.shape[1], device)
    scored = _gathered(model, scored)
    return scored[0].double().numpy(), scored[1].bool().numpy()


def perplexity_of(nats_per_token: float) -> float:
    """The perplexity of a loss. Raises a ``ValueError`` if it is not a finite number."""
    if not nats_per_token < math.log(sys.float_info.max):
        raise ValueError(f"the loss is {nats_per_token} nats per token, which gives no finite perplexity")
    return math.exp(nats_per_token)


def plan_calls(config: PreTrainedConfig, length_tokens: int, batch_tokens: int) -> tuple[int, int]:
    """Windows per batch and tokens per call that keep logits and attention within ``MAX_TENSOR_BYTES``."""
    config = config.get_text_config()
    floats_per_token = max(config.vocab_size, config.num_attention_heads * length_tokens)
    call_tokens = max(1, min(batch_tokens, MAX_TENSOR_BYTES // (4 * floats_per_token)))
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if call_tokens >= length_tokens or rope_type in _LENGTH_DEPENDENT_ROPE:
        return max(1, call_tokens // length_tokens), length_tokens
    return 1, call_tokens


def _make_batches(windows: Sequence[Window], batch_size: int) -> list[list[Window]]:
    """Batch windows of equal length. The last, shorter one forms its own batch, so nothing is padded."""
    groups = (list(group) for _, group in groupby(windows, key=lambda window: window.num_inputs))
    return [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]


def _score_batch(
    model: PreTrainedModel, ids: Tensor, windows: Sequence[Window], chunk_tokens: int, token_nats: Tensor
) -> None:
    """Write the loss of the scored tokens of ``windows`` to ``token_nats``."""
    inputs = torch.stack([ids[window.start : window.stop] for window in windows]).to(model.device)
    targets = torch.stack([ids[window.start + 1 : window.stop + 1] for window in windows]).to(model.device)
    first_scored = min(window.first_scored for window in windows)
    nats = _window_nats(model, inputs, targets, first_scored, chunk_tokens).cpu()
    for row, window in enumerate(windows):
        token_nats[window.scored] = nats[row, window.first_scored :]


def _window_nats(
    model: PreTrainedModel, inputs: Tensor, targets: Tensor, first_scored: int, chunk_tokens: int
) -> Tensor:
    """Loss ``(B, L)`` float32 by position. Windows are processed in chunks with a key-value cache.

    Chunks that end before ``first_scored`` need no logits; their losses stay 0.
    """
    nats = torch.zeros(inputs.shape, device=inputs.device)
    for chunk, logits in _chunk_logits(model, inputs, first_scored, chunk_tokens):
        chunk_targets = targets[:, chunk]
        chunk_nats = nn.functional.cross_entropy(logits.flatten(0, 1), chunk_targets.flatten(), reduction="none")
        nats[:, chunk] = chunk_nats.view_as(chunk_targets)
    return nats


def _chunk_logits(
    model: PreTrainedModel, inputs: Tensor, first_scored: int, chunk_tokens: int
) -> Iterator[tuple[slice, Tensor]]:
    """Logits ``(B, C, V)`` float32 of each chunk of the inputs that does not end before ``first_scored``."""
    length = inputs.shape[1]
    edges, cache = [0, length], None
    if length > chunk_tokens:
        edges = [*range(0, first_scored, chunk_tokens), *range(first_scored, length, chunk_tokens), length]
        cache = DynamicCache(config=model.config)
    for start, stop in pairwise(edges):
        chunk = {"input_ids": inputs[:, start:stop], cache_name(model): cache, "use_cache": cache is not None}
        if stop <= first_scored:
            model.base_model(**chunk)
        else:
            yield slice(start, stop), model(**chunk).logits.float()


def _share(
    model: PreTrainedModel,
    batches: Sequence[Any],
    score: Callable[[Any], None],
    label: str,
    length_tokens: int,
    device: torch.device | str | None,
) -> None:
    """Score the batches of this process: its share, or all batches of a model that is sharded.

    Raises:
        ValueError: The model fails in some process; raised in all, with the message of the first.
    """
    state = process_state()
    # A call of a sharded model waits for all processes, which therefore make the same calls.
    mine = batches if _is_sharded(model) else batches[state.process_index :: state.num_processes]
    model = model if device is None else model.to(device)
    failure = None
    try:
        with _scoring(model):
            for batch in tqdm(mine, desc=f"{label} {length_tokens}", leave=False, disable=hides_progress()):
                score(batch)
    except _MODEL_FAILURES as error:
        # The process cannot continue after an error of the accelerator, unlike after running out of memory.
        if isinstance(error, torch.AcceleratorError):
            raise
        failure = _explained(error, model.config, length_tokens)
    raise_on_all_ranks(failure)


def _gathered(model: PreTrainedModel, scores: Tensor) -> Tensor:
    """The scores of all processes on the CPU. Each is nonzero in only one process, so their sum is exact."""
    return scores if _is_sharded(model) else reduce(scores.to(process_state().device), "sum").cpu()


def _is_sharded(model: PreTrainedModel) -> bool:
    """Whether each process holds a part of the weights: FSDP2 and tensor parallelism, or ZeRO-3 of DeepSpeed."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def _explained(error: Exception, config: PreTrainedConfig, length_tokens: int) -> Exception:
    """The error of a model whose tables end without a message of their own, as in MPT, with both lengths."""
    longest = train_context_length(config)
    if type(error) is not RuntimeError or longest is None or length_tokens <= longest:
        return error
    reason = f"the model probably ends at the {longest} tokens in its config, and {length_tokens} were read"
    return RuntimeError(f"{error}: {reason}")


@contextmanager
def _scoring(model: PreTrainedModel) -> Iterator[None]:
    """Disable gradients and dropout. Raise IndexError for out-of-range indices, which would crash a CUDA process."""

    def check_indices(table: nn.Embedding, arguments: tuple[Tensor, ...]) -> None:
        for indices in arguments[:1]:
            if indices.max() >= table.num_embeddings:
                raise IndexError(f"index {indices.max()} is beyond the model's table of {table.num_embeddings} rows")

    # A subclass may take inputs other than indices.
    tables = [module for module in model.modules() if type(module) is nn.Embedding]
    handles = [table.register_forward_pre_hook(check_indices) for table in tables]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
