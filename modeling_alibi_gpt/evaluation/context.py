"""Tests whether a model uses distant text, by scoring the same tokens with and without the far part of their context.

The far part is replaced by another document or cut off. The test needs a checkpoint and a text of several documents.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_alibi_gpt.checkpoints.load import (
    checkpoint_fingerprint,
    load_model_config,
    load_model_tokenizer,
    train_context_length,
)
from modeling_alibi_gpt.data.corpora import describe_documents
from modeling_alibi_gpt.data.documents import document_rows
from modeling_alibi_gpt.data.tokenization import token_rows
from modeling_alibi_gpt.evaluation.grid import (
    DEFAULT_MULTIPLES,
    GridConfig,
    ModelRows,
    blank_row,
    default_lengths,
    run_grid,
)
from modeling_alibi_gpt.evaluation.measurement import (
    NUM_BLOCKS,
    MeasurementConfig,
    load_text_documents,
    text_provenance,
)
from modeling_alibi_gpt.evaluation.scoring import score_tails
from modeling_alibi_gpt.runtime.config import Count, Distinct, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import Record


_FIGURES = ("nats_per_token", "difference_nats", "nats_per_token_by_block", "nats_by_last_occurrence")
_KEY_FIELDS = ("name", "reading", "kept_tokens", "context_tokens", "scored_tokens", "num_windows")


@config_dataclass
class ContextConfig(MeasurementConfig, GridConfig):
    """Settings of ``alibi-gpt context``, which scores the last tokens of some windows with all of their context or a
    part of it.
    """

    UNUSED: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("max_tokens", "stride_tokens"), "remove it and set num_windows"
    )

    context_tokens: Count | None = None
    """Window length; null is 16 times the shortest training length of the models."""
    kept_tokens: Annotated[list[Count], Distinct] | None = None
    """Numbers of nearest context tokens that a scored token keeps while the rest is replaced or cut off; null is a
    quarter of the shortest training length and its doubles, up to half the window.
    """
    scored_tokens: Count = 64
    """Tokens at the end of each window that are scored. The first of them keeps ``kept_tokens``, each later one keeps
    one more.
    """
    num_windows: Count = 256
    """Number of windows, spread evenly over the documents that are long enough; no window crosses from one document to
    the next.
    """
    output: UserPath = "runs/context.jsonl"
    """JSON Lines file to which each finished row is appended. Rows in it are not computed again, not even failed ones;
    delete their lines to retry them.
    """


@dataclass(frozen=True, kw_only=True)
class ContextWindows:
    """W windows of L context tokens, of which the last S predictions are scored.

    Attributes:
        whole: ``(W, L + 1)`` token ids.
        others: ``(W, L)`` token ids of another document, which replace the first tokens of a window.
        scored_tokens: S.
        bin_edges: Edges of the distance bins, in tokens.
    """

    whole: np.ndarray
    others: np.ndarray
    scored_tokens: int
    bin_edges: Sequence[int]

    def read(self, reading: str, kept_tokens: int | None) -> np.ndarray:
        """Input sequences for a reading."""
        if kept_tokens is None:
            return self.whole
        num_far = self.whole.shape[1] - self.scored_tokens - kept_tokens
        near = self.whole[:, num_far:]
        return near if reading == "cut" else np.concatenate([self.others[:, :num_far], near], axis=1)

    @cached_property
    def last_occurrence(self) -> np.ndarray:
        """Distance ``(W, S)``, tokens, back to the last occurrence of each scored token; 0 if there is none."""
        distances = np.zeros((len(self.whole), self.scored_tokens), dtype=np.int64)
        first_scored = self.whole.shape[1] - self.scored_tokens
        for row, window in enumerate(self.whole.tolist()):
            places: dict[int, int] = {}
            for place, token in enumerate(window):
                if place >= first_scored:
                    distances[row, place - first_scored] = place - places.get(token, place)
                places[token] = place
        return distances


def run_context(config: ContextConfig, on_row: Callable[[Record], None] = lambda row: None) -> list[Record]:
    """Measure the grid and return its ``context`` records, ordered by model, reading and kept tokens.

    The readings are ``whole`` windows; ``replaced``, where tokens further back than ``kept_tokens`` come from another
    document; and ``cut``, where they are removed.

    Args:
        config: The grid.
        on_row: Called in the main process with each record, new or already in the file, as soon as it is available.

    Raises:
        ValueError: A model, the text or a setting cannot be used. If a model fails while it is measured, its record
            gives the reason in ``error`` instead.
    """
    configs = [load_model_config(model_dir, config.overrides) for model_dir in config.models]
    context, kept, edges = _sizes(config, configs)
    documents = load_text_documents(config, config.models)
    data_fingerprint = describe_documents(documents)["fingerprint"]
    grid = []
    for (name, model_dir), model_config in zip(config.named_models, configs, strict=True):
        tokenizer = load_model_tokenizer(model_dir)
        windows = _windows(config, documents, tokenizer, context, edges)
        content = windows.whole.tobytes() + windows.others.tobytes()
        where = text_provenance(
            config, data_fingerprint, hashlib.sha256(content).hexdigest(), checkpoint_fingerprint(model_dir)
        )
        blank = blank_row("context", config, name, model_dir, model_config, _FIGURES, where) | {
            "context_tokens": context,
            "scored_tokens": config.scored_tokens,
            "num_windows": config.num_windows,
        }
        parts = [("whole", None), *((reading, k) for reading in ("replaced", "cut") for k in kept)]
        blanks = [blank | {"reading": reading, "kept_tokens": k} for reading, k in parts]
        measure = partial(_measure, _Scores(windows, config.batch_tokens))
        grid.append(ModelRows(model_dir=model_dir, model_config=model_config, blanks=blanks, measure=measure))
    return run_grid(config, grid, key_fields=_KEY_FIELDS, on_row=on_row)


def _sizes(config: ContextConfig, configs: Sequence[Any]) -> tuple[int, list[int], list[int]]:
    """Context tokens, kept tokens, and the edges of the distance bins."""
    lengths = [1, *default_lengths(configs)] if any(map(train_context_length, configs)) else [1]
    context = config.context_tokens or (lengths[-1] if len(lengths) > 1 else None)
    if context is None:
        raise ValueError("no model config contains a training length: set context_tokens")
    trained = lengths[1] if len(lengths) > 1 else context // DEFAULT_MULTIPLES[-1]
    kept = config.kept_tokens
    if kept is None:
        kept = [k for power in range(-2, 16) if 1 <= (k := int(trained * 2.0**power)) <= context // 2]
    if not kept or max(kept) + config.scored_tokens > context:
        raise ValueError(
            f"kept_tokens plus scored_tokens must be at most context_tokens ({context}), got {kept} and "
            f"{config.scored_tokens}"
        )
    edges = {1, trained // 16, trained // 4, *lengths, context + 1}
    return context, sorted(kept), sorted(edge for edge in edges if 1 <= edge <= context + 1)


def _document_tokens(documents: Any, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """``input_ids`` of each document, ending with eos."""
    parts_of: list[list[np.ndarray]] = []
    for ids, is_first in token_rows(document_rows(documents), tokenizer):
        if is_first:
            parts_of.append([])
        parts_of[-1].append(ids)
    return [np.concatenate(parts) for parts in parts_of]


def _windows(
    config: ContextConfig,
    documents: Any,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    bin_edges: Sequence[int],
) -> ContextWindows:
    tokenized = _document_tokens(documents, tokenizer)
    long = [ids for ids in tokenized if len(ids) > context]
    if len(long) < 2:
        raise ValueError(
            f"expected at least 2 documents of more than {context} tokens, got {len(long)} of {len(tokenized)}: one "
            "replaces distant text of the other; provide more text or lower context_tokens"
        )
    places = [
        (document, start)
        for document, ids in enumerate(long)
        for start in range(0, len(ids) - context, config.scored_tokens)
    ]
    if len(places) < config.num_windows:
        raise ValueError(f"the text has {len(places)} windows of {context} tokens: lower num_windows to at most that")
    chosen = [places[i] for i in np.linspace(0, len(places) - 1, config.num_windows).round().astype(int)]
    whole, others = [], []
    for document, start in chosen:
        whole.append(long[document][start : start + context + 1])
        other = long[(document + 1) % len(long)]
        begin = start % (len(other) - context)
        others.append(other[begin : begin + context])
    return ContextWindows(
        whole=np.stack(whole), others=np.stack(others), scored_tokens=config.scored_tokens, bin_edges=bin_edges
    )


@dataclass
class _Scores:
    """Losses of one model. Those of the whole windows are cached, because all readings are compared with them."""

    windows: ContextWindows
    batch_tokens: int
    whole: np.ndarray | None = None

    def of(self, model: PreTrainedModel, reading: str, kept_tokens: int | None) -> np.ndarray:
        if kept_tokens is None and self.whole is not None:
            return self.whole
        nats, _ = score_tails(
            model,
            self.windows.read(reading, kept_tokens),
            self.windows.scored_tokens,
            batch_tokens=self.batch_tokens,
            device=process_state().device,
        )
        if not np.isfinite(nats).all():
            raise ValueError("the loss is not a finite number")
        if kept_tokens is None:
            self.whole = nats
        return nats


def _measure(scores: _Scores, model: PreTrainedModel, row: Record) -> Record:
    nats = scores.of(model, row["reading"], row["kept_tokens"])
    whole = scores.of(model, "whole", None)
    blocks = np.array_split(nats.mean(axis=1), min(NUM_BLOCKS, len(nats)))
    return {
        "nats_per_token": float(nats.mean()),
        "difference_nats": None if row["reading"] == "whole" else float((nats - whole).mean()),
        "nats_per_token_by_block": [float(block.mean()) for block in blocks],
        "nats_by_last_occurrence": _by_last_occurrence(scores.windows, nats),
    }


def _by_last_occurrence(windows: ContextWindows, nats: np.ndarray) -> dict[str, Any]:
    """Mean loss by distance to a token's last occurrence in the whole window, even if the model did not read it."""
    edges = windows.bin_edges
    bins = np.digitize(windows.last_occurrence, edges)  # 0 for tokens that did not occur before
    num_tokens = np.bincount(bins.ravel(), minlength=len(edges))
    sums = np.bincount(bins.ravel(), weights=nats.ravel(), minlength=len(edges))
    means = [float(total / count) if count else None for total, count in zip(sums, num_tokens, strict=True)]
    return {
        "edges_tokens": list(edges),
        "nats_per_token": means[1:],
        "num_tokens": num_tokens[1:].tolist(),
        "not_before_nats_per_token": means[0],
        "not_before_num_tokens": int(num_tokens[0]),
    }
