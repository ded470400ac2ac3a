"""The text of an experiment: read, cut into tokens, packed and described."""

import dataclasses
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_alibi_gpt.checkpoints.load import check_vocabulary
from modeling_alibi_gpt.data.corpora import describe_documents, is_of_files, load_documents
from modeling_alibi_gpt.data.packing import blocks_fingerprint, pack_documents
from modeling_alibi_gpt.data.tokenization import TokenStream, token_stream
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.data.tokenizer_training import cached_tokenizer
from modeling_alibi_gpt.training.experiment import DataSection, ExperimentConfig
from modeling_alibi_gpt.training.model_setup import model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Text ready for training.

    Attributes:
        tokenizer: What cut it into tokens; saved with the model.
        train: Packed sequences.
        validation: Packed sequences, for the evaluations during training.
        validation_stream: The same text as one stream, for the token-exact figure at the end.
        fingerprint: Of the documents of both splits.
        token_fingerprint: Of the packed sequences of both splits.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset
    validation_stream: TokenStream
    fingerprint: str
    token_fingerprint: str

    @property
    def text(self) -> dict[str, str]:
        """What a run that goes on must find as it was."""
        return {"documents": self.fingerprint, "tokens": self.token_fingerprint}


def prepare_data(config: ExperimentConfig) -> PreparedData:
    """Read, tokenise and pack the text of an experiment; every step is cached.

    Raises:
        ValueError: The text or the tokenizer cannot be used, or the text is too short for one sequence.
    """
    data, tokenizer = config.data, named_tokenizer(config)
    train_documents = training_documents(data)
    validation_documents = _documents(data, data.validation_source or data.source, "validation")
    if tokenizer is None:
        vocab_size = model_config(config.model).get_text_config().vocab_size
        tokenizer = cached_tokenizer(
            train_documents,
            vocab_size,
            Path(data.cache_dir).expanduser(),
            sample_bytes=data.tokenizer_sample_bytes,
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token

    packed = [
        _pack(config, documents, tokenizer, max_tokens, split)
        for documents, max_tokens, split in (
            (train_documents, data.max_train_tokens, "training"),
            (validation_documents, data.max_validation_tokens, "validation"),
        )
    ]
    fingerprints = [
        describe_documents(documents)["fingerprint"] for documents in (train_documents, validation_documents)
    ]
    return PreparedData(
        tokenizer=tokenizer,
        train=packed[0],
        validation=packed[1],
        validation_stream=token_stream(validation_documents, tokenizer, data.max_validation_tokens),
        fingerprint="+".join(fingerprints),
        token_fingerprint="+".join(map(blocks_fingerprint, packed)),
    )


def named_tokenizer(config: ExperimentConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer that an experiment or its checkpoint brings; None where one is trained on the text.

    Raises:
        ValueError: It cannot be used, or has ids beyond the embeddings of the model.
    """
    name = config.data.tokenizer or config.model.checkpoint
    if name in (None, "train"):
        return None
    tokenizer = load_tokenizer(name)
    check_vocabulary(tokenizer, model_config(config.model).get_text_config().vocab_size)
    return tokenizer


def training_documents(data: DataSection) -> Dataset:
    """The documents that an experiment learns from: all of a source, or of its train split, that another validates."""
    return _documents(data, data.source, "train")


def _documents(data: DataSection, source: str, split: str) -> Dataset:
    has_two_sources = data.validation_source is not None
    return load_documents(
        source,
        "all" if has_two_sources and is_of_files(source) and data.train_split == "train" else split,
        validation_fraction=0.0 if has_two_sources and split == "train" else data.validation_fraction,
        validation_unit=data.validation_unit,
        text_column=data.text_column,
        train_split=data.train_split,
    )


def _pack(
    config: ExperimentConfig,
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None,
    split: str,
) -> Dataset:
    data = config.data
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
