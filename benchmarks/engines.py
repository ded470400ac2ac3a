"""Runs one trained model in several engines and compares perplexity and predictions with those of PyTorch.

Shapes: T tokens of a text, V vocabulary.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.llama_cpp import LLAMA_CPP_PACKAGE, LlamaCpp
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.load import checkpoint_fingerprint, load_causal_lm, load_model_tokenizer
from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig, load_text, measurement_provenance
from modeling_alibi_gpt.runtime.config import Count, config_dataclass
from modeling_alibi_gpt.runtime.records import Record, append_record, check_record


LogProbs = Callable[[list[int]], Tensor]
CTRANSLATE2_TYPES = ("float32", "int8")
COLUMNS = (
    *("model", "engine", "weights", "MB", "perplexity", "KL from PyTorch, nats"),
    *("largest difference, nats", "same likeliest token"),
)


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An engine with a loaded model.

    Attributes:
        engine: Name of the engine.
        weights: Format of the weights.
        version: Version of the engine.
        num_bytes: Size of the weight files.
        log_probs: Maps tokens ``(T,)`` to log-probabilities ``(T, V)`` of the token after each.
    """

    engine: str
    weights: str
    version: str
    num_bytes: int
    log_probs: LogProbs


@config_dataclass
class EnginesConfig(MeasurementConfig):
    """Settings of ``python -m benchmarks engines``."""

    model: str
    """Checkpoint folder with its tokenizer, with the architecture of MPT or BLOOM (``configs/model/servable_*``)."""
    family: Literal["mpt", "bloom"]
    """Family to export the model as."""
    gguf_files: list[str] = field(default_factory=list)
    """GGUF files of the same model, for llama.cpp."""
    window_tokens: Count = 512
    """Length of the independent windows in which the text is read."""
    num_windows: Count = 4
    """Number of windows."""
    output: str | None = None
    """JSON Lines file to which the records are appended."""


def measure_engines(config: EnginesConfig) -> list[Record]:
    """Return ``engine`` records for PyTorch, for each GGUF file, and for CTranslate2 in float32 and int8.

    For models with BLOOM's GELU approximation, PyTorch is also measured with the exact GELU, which vLLM computes.

    Raises:
        ValueError: The checkpoint cannot be exported as ``family``, a GGUF file belongs to another model, the text is
            too short, or a package is not installed.
    """
    tokenizer = load_model_tokenizer(config.model)
    text = load_text(config, tokenizer)
    num_tokens = config.window_tokens * config.num_windows
    text.check_length(num_tokens)
    windows = text.stream.input_ids[:num_tokens].view(config.num_windows, -1).tolist()
    model = load_causal_lm(config.model)
    expected = torch.cat([_of_torch(model, window) for window in windows])
    targets = torch.tensor(windows)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for contestant in _contestants(config, model, tokenizer, Path(folder)):
            found = torch.cat([contestant.log_probs(window) for window in windows])
            record = {
                "kind": "engine",
                "name": Path(config.model).resolve().name,
                "engine": contestant.engine,
                "weights": contestant.weights,
                "version": contestant.version,
                "num_bytes": contestant.num_bytes,
                "length_tokens": config.window_tokens,
                "num_tokens": config.num_windows * (config.window_tokens - 1),
                **differences(found, expected, targets),
                "provenance": measurement_provenance(config, text, checkpoint_fingerprint(config.model)),
            }
            check_record(record)
            records.append(record)
    if config.output is not None:
        for record in records:
            append_record(config.output, record)
    return records


def differences(found: Tensor, expected: Tensor, windows: Tensor) -> dict[str, float]:
    """Compare log-probabilities ``(N * T, V)`` with the expected ones, on windows ``(N, T)`` of tokens."""
    # Renormalize: after rounding to float32 they do not sum to one, which would count as divergence.
    found, expected = found.double().log_softmax(-1), expected.double().log_softmax(-1)
    nats = -found.view(*windows.shape, -1)[:, :-1].gather(-1, windows[:, 1:, None]).mean().item()
    return {
        "nats_per_token": nats,
        "perplexity": math.exp(nats),
        "kl_nats_per_token": (expected.exp() * (expected - found)).sum(-1).mean().item(),
        "max_log_prob_difference_nats": (found - expected).abs().max().item(),
        "likeliest_equal": (found.argmax(-1) == expected.argmax(-1)).double().mean().item(),
    }


def table(records: list[Record]) -> str:
    """Format ``engine`` records as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{3 * ' :-- |'}{5 * ' --: |'}"]
    for record in records:
        cells = [
            *(record[name] for name in ("name", "engine", "weights")),
            f"{record['num_bytes'] / 1e6:.1f}",
            f"{record['perplexity']:.2f}",
            f"{record['kl_nats_per_token']:.1e}",
            f"{record['max_log_prob_difference_nats']:.1e}",
            f"{record['likeliest_equal']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _contestants(
    config: EnginesConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> Iterator[Contestant]:
    torch_fields: dict[str, Any] = {
        "engine": "PyTorch",
        "version": torch.__version__,
        "num_bytes": sum(path.stat().st_size for path in Path(config.model).glob("*.safetensors")),
    }
    yield Contestant(weights="float32", log_probs=partial(_of_torch, model), **torch_fields)
    if config.family == "bloom":
        exact = partial(_of_torch, with_exact_gelu(model))
        yield Contestant(weights="float32, exact GELU", log_probs=exact, **torch_fields)
    for path in config.gguf_files:
        llama = LlamaCpp(path)
        yield Contestant(
            engine="llama.cpp",
            weights=gguf_type(path),
            version=f"{LLAMA_CPP_PACKAGE} {metadata.version(LLAMA_CPP_PACKAGE)}",
            num_bytes=Path(path).stat().st_size,
            log_probs=partial(_of_llama_cpp, llama, model.config.vocab_size),
        )
    flavour = "llm-foundry" if config.family == "mpt" else "transformers"
    exported = ConvertConfig(model=config.model, output_dir=str(folder / "hf"), to=config.family, flavour=flavour)
    convert(exported)
    for weights in CTRANSLATE2_TYPES:
        yield _of_ctranslate2(folder, weights, tokenizer)


@torch.no_grad()
def _of_torch(model: PreTrainedModel, input_ids: list[int]) -> Tensor:
    return model(torch.tensor([input_ids])).logits[0].log_softmax(-1)


def _of_llama_cpp(llama: LlamaCpp, vocab_size: int, input_ids: list[int]) -> Tensor:
    ends = range(1, len(input_ids) + 1)
    return torch.stack([llama.log_probs(input_ids[:end], vocab_size) for end in ends])


def _of_ctranslate2(folder: Path, weights: str, tokenizer: PreTrainedTokenizerBase) -> Contestant:
    try:
        import ctranslate2
        from ctranslate2.converters import transformers as converters
    except ImportError as error:
        raise ValueError("running CTranslate2 needs its package: pip install ctranslate2") from error
    # It recognizes MPT by the config class name of llm-foundry, which differs from that of transformers.
    converters._MODEL_LOADERS.setdefault("MptConfig", converters._MODEL_LOADERS["MPTConfig"])
    target = folder / weights
    converters.TransformersConverter(str(folder / "hf")).convert(str(target), quantization=weights)
    generator = ctranslate2.Generator(str(target), device="cpu", compute_type=weights, intra_threads=1)

    def log_probs(input_ids: list[int]) -> Tensor:
        tokens = tokenizer.convert_ids_to_tokens(input_ids)
        return torch.from_numpy(np.array(generator.forward_batch([tokens], return_log_probs=True)))[0]

    return Contestant(
        engine="CTranslate2",
        weights=weights,
        version=ctranslate2.__version__,
        num_bytes=(target / "model.bin").stat().st_size,
        log_probs=log_probs,
    )


def with_exact_gelu(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a causal model with exact GELU in its MLPs instead of the tanh approximation."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()
    return model


def gguf_type(path: str) -> str:
    """Weight format of a GGUF file as llama.cpp names it, such as ``Q4_K_M``."""
    from gguf import GGUFReader, LlamaFileType

    kind = LlamaFileType(GGUFReader(path).get_field("general.file_type").contents())
    return kind.name.removeprefix("ALL_").removeprefix("MOSTLY_")
