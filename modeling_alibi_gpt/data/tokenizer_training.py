"""Train byte-level BPE tokenizers on the training text of a model."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_alibi_gpt.data.documents import describe_documents, document_rows, num_bytes_of_rows, pieces_of_row
from modeling_alibi_gpt.data.tokenizer_files import load_tokenizer
from modeling_alibi_gpt.runtime.manifest import manifest_difference, write_manifest


END_OF_TEXT = "<|endoftext|>"

logger = logging.getLogger(__name__)


def train_tokenizer(
    documents: Dataset, vocab_size: int, *, sample_bytes: int | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Radford et al. 2019, sec. 2.2) on the documents.

    Encoding is lossless. The one special token, ``<|endoftext|>``, is bos, eos, pad and unk (unk cannot occur).
    ``model_max_length`` is not set, because the model has no length limit.

    Args:
        documents: Rows with a ``text``.
        vocab_size: Size of the vocabulary, including the 256 bytes and the special token. A text with too few
            distinct words gives a smaller vocabulary.
        sample_bytes: Train on about this many bytes of a larger corpus, in pieces spread evenly over it.

    Raises:
        ValueError: ``vocab_size`` is too small for the bytes and the special token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + 1
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes and {END_OF_TEXT}), got {vocab_size}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_sample(documents, sample_bytes), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def cached_tokenizer(
    documents: Dataset, vocab_size: int, cache_dir: str | Path, *, sample_bytes: int | None = None
) -> PreTrainedTokenizerFast:
    """``train_tokenizer``, cached in a folder of ``cache_dir`` by documents and sizes.

    The folder is created atomically, so a run may be killed and several runs may train at once. If the files do not
    match the manifest, or there is no manifest, a warning names the difference and the tokenizer is trained again.
    """
    description = describe_documents(documents)
    is_sampled = sample_bytes is not None and description["num_bytes"] > sample_bytes
    sample = f"-{sample_bytes}" if is_sampled else ""
    folder = Path(cache_dir, f"bpe-{vocab_size}-{description['fingerprint']}{sample}")
    difference = manifest_difference(folder) if folder.exists() else None
    if difference is not None:
        logger.warning("retraining the damaged cached tokenizer %s: %s", folder, difference)
    if difference is not None or not folder.exists():
        tokenizer = train_tokenizer(documents, vocab_size, sample_bytes=sample_bytes)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokenizer-") as beside:
            written = Path(beside, folder.name)
            tokenizer.save_pretrained(written)
            write_manifest(written)
            if difference is not None:
                os.replace(folder, Path(beside, "damaged"))
            try:
                os.replace(written, folder)
            except OSError:
                if not folder.exists():  # otherwise another run has written the same tokenizer
                    raise
    return load_tokenizer(folder)


def _sample(documents: Dataset, sample_bytes: int | None) -> Iterator[str]:
    """The text in pieces: the word counts are the same, and a piece needs less memory than a document."""
    num_bytes = sum(num_bytes_of_rows(documents))
    share = 1.0 if sample_bytes is None else min(1.0, sample_bytes / max(1, num_bytes))
    num_read = num_taken = 0
    for _, row in document_rows(documents):
        for _, piece in pieces_of_row(row):
            num_read += len(piece.encode())
            if num_taken < share * num_read or share == 1.0:
                num_taken += len(piece.encode())
                yield piece
