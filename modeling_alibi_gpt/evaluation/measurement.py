"""Shared code for measuring a checkpoint on a text: settings, text, metrics and provenance."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from datasets import Dataset
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_alibi_gpt.attention import ALL_ATTENTION_FUNCTIONS
from modeling_alibi_gpt.checkpoints.load import COMPUTE_DTYPES
from modeling_alibi_gpt.data.corpora import (
    check_split,
    describe_documents,
    is_of_files,
    is_share_of_train,
    load_documents,
    shared_file,
)
from modeling_alibi_gpt.data.tokenization import TokenStream, token_stream
from modeling_alibi_gpt.evaluation.scoring import WindowScores, perplexity_of
from modeling_alibi_gpt.runtime.config import Count, config_dataclass
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.parsing import read_mapping
from modeling_alibi_gpt.runtime.records import provenance
from modeling_alibi_gpt.runtime.run_names import EXPERIMENT_FILE


# Enough blocks for a standard error, each long enough to be nearly independent of its neighbors.
NUM_BLOCKS = 16

logger = logging.getLogger(__name__)


@config_dataclass
class ReadingConfig:
    """Settings for loading and calling a checkpoint, common to all measurements."""

    # Inherited settings that a measurement has no use for, and why: they are refused and missing from the schema.
    UNUSED: ClassVar[Mapping[str, str]] = {}

    batch_tokens: Count = 16384
    """Largest number of tokens in one call of the model."""
    dtype: Literal[*COMPUTE_DTYPES] = "float32"
    """``float32`` or ``bfloat16``."""
    attn_implementation: str | None = None
    """Attention back end; null is the model's default."""

    def __post_init__(self) -> None:
        for name, reason in self.UNUSED.items():
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is not used here: {reason}")
        known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
        if self.attn_implementation not in (None, *known):
            raise ValueError(
                f"attn_implementation must be one of {', '.join(known)}, got {self.attn_implementation!r}"
            )


@config_dataclass
class MeasurementConfig(ReadingConfig):
    """Settings of a measurement on a text."""

    source: str = "stdlib"
    """``stdlib``; ``text:GLOB`` (plain or .gz), ``jsonl:GLOB`` or ``parquet:GLOB``, commas between several globs; or
    ``hub:NAME[:CONFIG][@REVISION]``.
    """
    split: str | None = None
    """``train``, ``validation``, ``test`` or ``all``; for rows also an expression such as ``test[:10%]``. Null is
    ``all`` for files and ``validation`` otherwise.
    """
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share held out for validation if the source has no such split; at most that of the training."""
    validation_unit: Literal["tail", "document"] | None = None
    """What is held out, as in the training: the ``tail`` of each document, or whole documents (``document``). Null is
    ``tail`` for ``text:`` and ``document`` for rows.
    """
    text_column: str = "text"
    """Column with the text, for sources of rows."""
    max_tokens: Count | None = None
    """Largest number of tokens to read, from the start of the text."""
    stride_tokens: Count | None = None
    """Stride of ``sliding`` windows; null is a quarter of their length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_split(self.source, self.text_split)

    @property
    def text_split(self) -> str:
        """The split that is read."""
        return self.split or ("all" if is_of_files(self.source) else "validation")


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """A text encoded by one tokenizer, with fingerprints of the documents and of the tokens."""

    stream: TokenStream
    data_fingerprint: str
    stream_fingerprint: str

    def check_length(self, length_tokens: int) -> None:
        """Raise ValueError unless one full window fits; a shorter one would be reported under a wrong length."""
        num_tokens = len(self.stream.input_ids)
        if num_tokens <= length_tokens:
            raise ValueError(
                f"the text has {num_tokens} tokens, a window of {length_tokens} needs {length_tokens + 1}: "
                "provide more text, raise max_tokens or lower the length"
            )


def check_held_out(config: MeasurementConfig, documents: Dataset, trained: Mapping[str, Any], model: str) -> None:
    """Raise a ValueError if the share held out for validation contains text that a model was trained on.

    Args:
        config: Settings of the measurement.
        documents: The documents that it reads.
        trained: ``data`` settings of the training.
        model: The model, for the message.
    """
    source = trained.get("source")
    sources = [part.get("source") for part in source] if isinstance(source, list) else [source]
    if config.text_split != "validation":
        return
    if config.source not in sources and not any(shared_file(config.source, str(each)) for each in sources):
        return
    if not is_share_of_train(config.source, documents):
        return
    fraction, unit = trained.get("validation_fraction", 0.1), trained.get("validation_unit")
    is_tail = [each != "document" for each in (unit, config.validation_unit)]
    if trained.get("validation_source") is not None:
        held_out = "nothing, since it had a validation_source of its own"
    elif config.validation_fraction > fraction or (config.source.startswith("text:") and is_tail[0] != is_tail[1]):
        held_out = f"validation_fraction {fraction:g} and validation_unit {'tail' if is_tail[0] else 'document'}"
    else:
        return
    raise ValueError(
        f"split validation of {config.source} contains text that {model} was trained on: its training held out "
        f"{held_out}"
    )


def load_text(
    config: MeasurementConfig, tokenizer: PreTrainedTokenizerBase, model_dir: str | None = None
) -> EvaluationText:
    """Load and encode the text of a measurement. The main process goes first, so that the others use its cache.

    A warning says how many tokens stand for text that the tokenizer does not know.

    Args:
        config: Settings of the measurement.
        tokenizer: Tokenizer of the model.
        model_dir: Folder of the model, as in ``load_text_documents``; None for a model that is not trained yet.

    Raises:
        ValueError: As in ``load_text_documents``.
    """
    documents = load_text_documents(config, [] if model_dir is None else [model_dir])
    with process_state().main_process_first():
        stream = token_stream(documents, tokenizer, config.max_tokens)
    _warn_of_unknown(stream.input_ids, tokenizer)
    content = stream.input_ids.numpy().tobytes() + stream.num_bytes.numpy().tobytes()
    return EvaluationText(
        stream=stream,
        data_fingerprint=describe_documents(documents)["fingerprint"],
        stream_fingerprint=hashlib.sha256(content).hexdigest(),
    )


def _warn_of_unknown(input_ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of tokens that stand for lost text: a model predicts them easily, whatever the text was.

    Byte-level tokenizers lose nothing; as their unknown token, some name the one that ends a document.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return
    num_unknown = int((input_ids == unknown).sum())
    if num_unknown and process_state().is_main_process:
        logger.warning(
            "%s of %s tokens are %s: text that the tokenizer does not know. Perplexity and bits per byte count them "
            "as correct text, so do not compare them across tokenizers.",
            f"{num_unknown:,}",
            f"{len(input_ids):,}",
            tokenizer.unk_token,
        )


def load_text_documents(config: MeasurementConfig, model_dirs: Sequence[str] = ()) -> Dataset:
    """Load the documents of a measurement. The main process goes first, so that the others use its cache.

    Args:
        config: Settings of the measurement.
        model_dirs: Folders of the models. If one says how its model was trained, its validation text is checked.

    Raises:
        ValueError: The source or split does not exist or contains no text, or a model was trained on part of it
            although it should be held out.
    """
    with process_state().main_process_first():
        documents = load_documents(
            config.source,
            config.text_split,
            validation_fraction=config.validation_fraction,
            validation_unit=config.validation_unit,
            text_column=config.text_column,
        )
    for model_dir in model_dirs:
        if (path := Path(model_dir, EXPERIMENT_FILE)).is_file():
            trained = read_mapping(path).get("data")
            check_held_out(config, documents, trained if isinstance(trained, dict) else {}, model_dir)
    return documents


def perplexity_figures(scores: WindowScores, num_bytes: Tensor | np.ndarray) -> dict[str, float | int]:
    """Return perplexity, nats per token and bits per byte of a scored stream, with token and byte counts.

    Args:
        scores: Scores of the stream.
        num_bytes: ``(N,)`` UTF-8 bytes that each token of the stream represents.

    Raises:
        ValueError: The loss is not a number.
    """
    predicted_bytes = np.asarray(num_bytes)[1:]
    return perplexity_of_nats(
        scores.window_nats,
        scores.window_num_tokens,
        [predicted_bytes[window.scored].sum() for window in scores.windows],
    )


def perplexity_of_nats(
    nats: Sequence[float], num_tokens: Sequence[int], num_bytes: Sequence[int]
) -> dict[str, float | int]:
    """Return perplexity, nats per token and bits per byte from the totals of each sequence.

    Args:
        nats: Negative log-likelihood of the scored tokens of each sequence.
        num_tokens: Number of scored tokens of each sequence.
        num_bytes: UTF-8 bytes of the same tokens. Bits per byte are comparable across tokenizers.

    Raises:
        ValueError: No token or no byte was scored, or the loss is not a number.
    """
    total_nats, total_tokens, total_bytes = math.fsum(nats), int(sum(num_tokens)), int(sum(num_bytes))
    if total_tokens < 1 or total_bytes < 1:
        raise ValueError(f"perplexity needs scored text, got {total_tokens} tokens of {total_bytes} bytes")
    nats_per_token = total_nats / total_tokens
    return {
        "nats_per_token": nats_per_token,
        "perplexity": perplexity_of(nats_per_token),
        "bits_per_byte": total_nats / math.log(2) / total_bytes,
        "num_tokens": total_tokens,
        "num_bytes": total_bytes,
    }


def block_nats(scores: WindowScores) -> list[float]:
    """Return nats per token of each of ``NUM_BLOCKS`` equal, consecutive blocks of the text; fewer for tiny texts.

    Blocks depend only on the text, so two measurements of one text can be paired block by block even if their windows
    differ. The spread of the paired differences shows how much a difference depends on the text.
    """
    num_blocks = min(NUM_BLOCKS, len(scores.token_nats))
    return [float(block.mean()) for block in np.array_split(scores.token_nats, num_blocks)]


def measurement_provenance(config: MeasurementConfig, text: EvaluationText, model_fingerprint: str) -> dict[str, Any]:
    """Return the provenance of a result: machine, versions, and all inputs that the record itself does not contain."""
    return text_provenance(config, text.data_fingerprint, text.stream_fingerprint, model_fingerprint)


def text_provenance(
    config: MeasurementConfig, data_fingerprint: str, stream_fingerprint: str, model_fingerprint: str
) -> dict[str, Any]:
    """Return the same as ``measurement_provenance``, for documents and tokens that do not form a stream."""
    return {
        **provenance(data_fingerprint=data_fingerprint),
        "stream_fingerprint": stream_fingerprint,
        "model_fingerprint": model_fingerprint,
        "source": config.source,
        "split": config.text_split,
        "max_tokens": config.max_tokens,
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
    }
