"""Read, tokenize, pack and fingerprint the text of an experiment."""

import dataclasses
from functools import partial
from pathlib import Path

from datasets import Dataset, concatenate_datasets, interleave_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from modeling_alibi_gpt.checkpoints.load import check_vocabulary
from modeling_alibi_gpt.data.corpora import (
    describe_documents,
    is_of_files,
    is_share_of_train,
    load_documents,
    shared_file,
)
from modeling_alibi_gpt.data.packing import blocks_fingerprint, count_tokens, pack_documents
from modeling_alibi_gpt.data.row_datasets import split_names
from modeling_alibi_gpt.data.streaming import StreamedBlocks, stream_documents, stream_fingerprint
from modeling_alibi_gpt.data.tasks import is_task
from modeling_alibi_gpt.data.tokenization import TokenStream, join_streams, token_stream, tokenizer_meaning
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.data.tokenizer_training import cached_tokenizer
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.training.experiment import DataSection, ExperimentConfig
from modeling_alibi_gpt.training.model_setup import model_config
from modeling_alibi_gpt.training.task_data import task_data


# With max_train_tokens, this much text is read first: several times what usual text has per token.
BYTES_PER_TOKEN = 16
MIN_BYTES = 2**25


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Text ready for training.

    Attributes:
        tokenizer: The tokenizer of the text; saved with the model.
        train: Packed sequences.
        validation: Packed sequences for evaluation during training.
        validation_stream: The same text as one stream, for the exact loss at the end; None for a task.
        fingerprint: Fingerprint of the documents of both splits.
        token_fingerprint: Fingerprint of the packed sequences of both splits.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Dataset | StreamedBlocks
    validation: Dataset
    validation_stream: TokenStream | None
    fingerprint: str
    token_fingerprint: str

    @property
    def text(self) -> dict[str, str]:
        """Fingerprints that must not change when a run is resumed."""
        return {"documents": self.fingerprint, "tokens": self.token_fingerprint}


def prepare_data(config: ExperimentConfig) -> PreparedData:
    """Read, tokenize and pack the text of an experiment; every step is cached.

    Raises:
        ValueError: The text or the tokenizer cannot be used, or the text is shorter than one sequence.
    """
    if is_task(config.data.source):
        return PreparedData(**task_data(config))
    data, tokenizer = config.data, named_tokenizer(config)
    if tokenizer is None and data.streaming:
        raise ValueError("data.streaming needs data.tokenizer: a stream cannot be read before training")
    if data.validation_source is not None:
        validation_parts = [_Part(_validation_documents(data, data.validation_source), 1.0)]
    else:
        validation_parts = [_Part(_own_validation_documents(part), share) for part, share in data.parts]
    if data.streaming:
        train, fingerprint, token_fingerprint = _stream(data, tokenizer)
    else:
        train_parts, tokenizer, packed = _read_and_pack(config, tokenizer)
        train = _mixed(packed, [part.share for part in train_parts], data)
        fingerprint, token_fingerprint = _fingerprint(train_parts), blocks_fingerprint(train)
    limits = [_limit(data.max_validation_tokens, part.share, data) for part in validation_parts]
    validation = _joined(
        [
            _pack(data, part.documents, tokenizer, limit, "validation")
            for part, limit in zip(validation_parts, limits, strict=True)
        ]
    )
    streams = [
        token_stream(part.documents, tokenizer, limit) for part, limit in zip(validation_parts, limits, strict=True)
    ]
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        validation_stream=join_streams(streams),
        fingerprint=f"{fingerprint}+{_fingerprint(validation_parts)}",
        token_fingerprint=f"{token_fingerprint}+{blocks_fingerprint(validation)}",
    )


def _read_and_pack(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[list["_Part"], PreTrainedTokenizerBase, list[Dataset]]:
    """Training documents, their tokenizer and their packed sequences, with as much text as ``max_train_tokens`` needs.

    The amount is unknown before the text is encoded, so read a first part and double it until it suffices.
    """
    data = config.data
    max_bytes = _first_bytes(data)
    while True:
        parts = _train_parts(data, max_bytes)
        chosen = tokenizer or cached_tokenizer(
            _joined([part.documents for part in parts]),
            model_config(config.model).get_text_config().vocab_size,
            Path(data.cache_dir).expanduser(),
            sample_bytes=data.tokenizer_sample_bytes,
        )
        packed = [_pack(data, part.documents, chosen, data.max_train_tokens, "training") for part in parts]
        if max_bytes is None or all(map(partial(_is_enough, data, max_bytes), parts, packed)):
            return parts, chosen, packed
        max_bytes *= 2


def _is_enough(data: DataSection, max_bytes: int, part: "_Part", blocks: Dataset) -> bool:
    """Whether the text ends before ``max_bytes``, or has the requested number of tokens."""
    assert data.max_train_tokens is not None
    is_whole = describe_documents(part.documents)["num_bytes"] < max_bytes
    return is_whole or count_tokens(blocks) >= data.max_train_tokens


def _first_bytes(data: DataSection) -> int | None:
    """Bytes of text to read first; None is all."""
    return None if data.max_train_tokens is None else max(MIN_BYTES, BYTES_PER_TOKEN * data.max_train_tokens)


def _train_parts(data: DataSection, max_bytes: int | None) -> list["_Part"]:
    return [_Part(_documents(part, part.source, "train", max_bytes), share) for part, share in data.parts]


def _stream(data: DataSection, tokenizer: PreTrainedTokenizerBase) -> tuple[StreamedBlocks, str, str]:
    """A stream, and fingerprints of its documents and tokenization that are known in advance."""
    state = process_state()
    blocks = StreamedBlocks(
        stream_documents(data.source, train_split=data.train_split, text_column=data.text_column),
        tokenizer,
        data.train_length_tokens,
        isolate_documents=data.isolate_documents,
        num_streams=data.num_streams,
        num_shuffled_documents=data.num_shuffled_documents,
        rank=state.process_index,
        num_processes=state.num_processes,
    )
    fingerprint = stream_fingerprint(data.source, data.train_split)
    cut = (tokenizer_meaning(tokenizer), data.train_length_tokens, data.num_streams, data.num_shuffled_documents)
    return blocks, fingerprint, f"stream-{Hasher.hash(cut)}"


@dataclasses.dataclass(frozen=True)
class _Part:
    documents: Dataset
    share: float


def _joined(parts: list[Dataset]) -> Dataset:
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _mixed(packed: list[Dataset], shares: list[float], data: DataSection) -> Dataset:
    """Sequences drawn from the parts by their shares; the same for every seed."""
    if len(packed) == 1:
        return packed[0]
    mixed = interleave_datasets(packed, probabilities=shares, seed=0, stopping_strategy="first_exhausted")
    if data.max_train_tokens is not None:
        mixed = mixed.select(range(min(len(mixed), data.max_train_tokens // data.train_length_tokens)))
    return mixed


def _limit(max_tokens: int | None, share: float, data: DataSection) -> int | None:
    return None if max_tokens is None else max(data.train_length_tokens, round(max_tokens * share))


def _fingerprint(parts: list[_Part]) -> str:
    """Fingerprint of the documents of a source, or of all parts of a mixture with their shares."""
    fingerprints = [describe_documents(part.documents)["fingerprint"] for part in parts]
    if len(parts) == 1:
        return fingerprints[0]
    return ",".join(f"{part.share:.6g}*{found}" for part, found in zip(parts, fingerprints, strict=True))


def named_tokenizer(config: ExperimentConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer of an experiment or its checkpoint; None if one is trained on the text.

    Raises:
        ValueError: The tokenizer cannot be used, or has ids beyond the embeddings of the model.
    """
    if not _names_tokenizer(config):
        return None
    tokenizer = load_tokenizer(config.data.tokenizer or config.model.checkpoint)
    check_vocabulary(tokenizer, model_config(config.model).get_text_config().vocab_size)
    return tokenizer


def text_identity(config: ExperimentConfig, data: PreparedData) -> dict[str, str]:
    """The fingerprints of ``data`` that all trainings of a comparison or sweep must have in common.

    A tokenizer at a path may be replaced; one that is trained follows from the documents and each model's vocabulary.
    """
    return {what: found for what, found in data.text.items() if what == "documents" or _names_tokenizer(config)}


def _names_tokenizer(config: ExperimentConfig) -> bool:
    return (config.data.tokenizer or config.model.checkpoint) not in (None, "train")


def training_documents(data: DataSection) -> Dataset:
    """The documents that an experiment trains on.

    Those of all parts of a mixture, concatenated; of a source with ``max_train_tokens``, the part that is read first.

    Raises:
        ValueError: The source is a stream, which is not read before training.
    """
    if data.streaming:
        raise ValueError("the documents of a stream cannot be listed before training: set data.streaming to false")
    return _joined([part.documents for part in _train_parts(data, _first_bytes(data))])


def _validation_documents(data: DataSection, source: str) -> Dataset:
    """The documents of ``validation_source``; a ValueError if the training reads them, too."""
    documents = _documents(data, source, "validation")
    trained = [part.source for part, _ in data.parts]
    if source in trained and is_share_of_train(source, documents):
        raise ValueError(
            f"data.validation_source {source} is also data.source and has no validation split, so its text would be "
            "trained on: set data.validation_source to null to hold a share back, or to another source"
        )
    for part, _ in data.parts:
        if part.source == source:
            _check_train_split(part, documents)
    for path in (shared_file(source, other) for other in trained):
        if path is not None:
            raise ValueError(
                f"data.validation_source {source} and data.source both read {path}, so its text would be trained on: "
                "leave it out of one of them, or set data.validation_source to null to hold a share back"
            )
    return documents


def _own_validation_documents(part: DataSection) -> Dataset:
    """The documents that a training source validates on; a ValueError if the training reads them, too."""
    documents = _documents(part, part.source, "validation")
    _check_train_split(part, documents)
    return documents


def _check_train_split(part: DataSection, documents: Dataset) -> None:
    """Raise a ValueError if ``documents`` are the validation split of a training source that trains on this split."""
    has_own_split = part.source.startswith("hub:") and not is_share_of_train(part.source, documents)
    if has_own_split and {"validation", "all"}.intersection(split_names(part.train_split)):
        raise ValueError(
            f"data.train_split {part.train_split!r} contains the validation split of {part.source}, so its text would "
            "be trained on: expected splits without it, or data.validation_source set to another source"
        )


def _documents(data: DataSection, source: str, split: str, max_bytes: int | None = None) -> Dataset:
    has_two_sources = data.validation_source is not None
    is_read_whole = is_of_files(source) and (split == "validation" or data.train_split == "train")
    return load_documents(
        source,
        "all" if has_two_sources and is_read_whole else split,
        validation_fraction=0.0 if has_two_sources and split == "train" else data.validation_fraction,
        validation_unit=data.validation_unit,
        text_column=data.text_column,
        train_split=data.train_split,
        max_bytes=max_bytes,
    )


def _pack(
    data: DataSection,
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None,
    split: str,
) -> Dataset:
    try:
        return pack_documents(
            documents,
            tokenizer,
            data.train_length_tokens,
            isolate_documents=data.isolate_documents,
            max_tokens=max_tokens,
            num_proc=data.num_proc,
        )
    except ValueError as error:
        raise ValueError(f"{split} text: {error}") from error
