"""Compares log-probabilities and greedy tokens of a checkpoint between llama.cpp and PyTorch.

Shapes: V vocabulary.
"""

import copy
import json
import tempfile
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_alibi_gpt.checkpoints.gguf.export import export_gguf
from modeling_alibi_gpt.checkpoints.load import checkpoint_fingerprint, load_causal_lm, load_model_tokenizer
from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig, load_text, measurement_provenance
from modeling_alibi_gpt.runtime.config import config_dataclass
from modeling_alibi_gpt.runtime.records import Record, append_record, check_record


# Arithmetic of llama.cpp: its defaults (keys and values in float16, flash attention), or float32 wherever possible.
PRECISIONS = ("default", "float32")
LLAMA_CPP_PACKAGE = "xllamacpp"


class LlamaCpp:
    """llama.cpp with one GGUF file on one CPU thread, through the server of the package ``xllamacpp``.

    Args:
        file: The GGUF file.
        precision: ``default`` or ``float32``.

    Raises:
        ValueError: The precision is unknown, or the package is not installed.
    """

    def __init__(self, file: str | Path, *, precision: str = "default") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        try:
            import xllamacpp
        except ImportError as error:
            raise ValueError("running llama.cpp needs the package xllamacpp: pip install xllamacpp") from error
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel = params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_ctx = 0  # the context length of the file
        params.warmup = params.fit_params = False
        params.verbosity = 0
        if precision == "float32":
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)

    def tokenize(self, text: str) -> list[int]:
        """Tokenize a text. Special tokens spelled out in it are read as plain text."""
        return self._ask("tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]

    def greedy_tokens(self, input_ids: list[int], num_new_tokens: int) -> list[int]:
        """Generate tokens greedily after a prompt, ignoring the end of text."""
        settings = {"n_predict": num_new_tokens, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        return self._ask("completion", {"prompt": input_ids, **settings})["tokens"]

    def log_probs(self, input_ids: list[int], vocab_size: int) -> Tensor:
        """Return log-probabilities ``(V,)`` of the token after a prompt. The cache of the last prompt is reused."""
        # The server drops the step of a token that ends inside a character, so force it to choose a letter. The
        # log-probabilities that it reports do not include this bias.
        letter = self.tokenize("a")[0]
        settings = {"n_predict": 1, "n_probs": vocab_size, "temperature": 0, "logit_bias": [[letter, 1e6]]}
        (step,) = self._ask("completion", {"prompt": input_ids, **settings})["completion_probabilities"]
        by_token = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
        return torch.tensor([by_token[token] for token in range(vocab_size)])

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        address = f"{self._server.listening_address}/{path}"
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)) as response:
            return json.load(response)


class GgmlGELU(nn.Module):
    """GELU as ggml computes it on a CPU: the tanh approximation with input and output rounded to float16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        table = F.gelu(hidden_states.half().float(), approximate="tanh").half().to(hidden_states.dtype)
        table = table.where(hidden_states > -10, 0.0)
        return table.where(hidden_states < 10, hidden_states)


def with_ggml_gelu(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a causal model with :class:`GgmlGELU` in its MLPs."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.mlp.act_fn = GgmlGELU()
    return model


@torch.no_grad()
def compare(llama: LlamaCpp, model: PreTrainedModel, input_ids: list[int], num_new_tokens: int) -> dict[str, Any]:
    """Let llama.cpp continue a text greedily, and compare its predictions with a float32 model on the same text.

    llama.cpp always approximates GELU. It is therefore compared both with the model and with a float64 model that has
    the same GELU. The latter isolates rounding errors, for which PyTorch's own errors are the yardstick.

    Returns:
        Maxima in nats over all new tokens and the whole vocabulary: ``max_log_prob_difference_nats`` from the model;
        ``max_rounding_error_nats`` of llama.cpp and ``torch_rounding_error_nats`` of PyTorch in float32, both from the
        float64 model with ggml's GELU. ``greedy_tokens_equal`` counts new tokens that are also the most likely ones
        of the model.
    """
    tokens = llama.greedy_tokens(input_ids, num_new_tokens)
    prompts = [input_ids + tokens[:index] for index in range(num_new_tokens)]
    log_probs = torch.stack([llama.log_probs(prompt, model.config.vocab_size) for prompt in prompts])
    text = torch.tensor([input_ids + tokens])
    same_gelu = with_ggml_gelu(model)
    expected, rounded, exact = (
        each(text).logits[0, len(input_ids) - 1 : -1].log_softmax(-1)
        for each in (model, same_gelu, copy.deepcopy(same_gelu).double())
    )
    likeliest = expected.clone()
    if (eos := model.config.eos_token_id) is not None:
        likeliest[:, eos] = -torch.inf
    return {
        "max_log_prob_difference_nats": (log_probs - expected).abs().max().item(),
        "max_rounding_error_nats": (log_probs - exact).abs().max().item(),
        "torch_rounding_error_nats": (rounded - exact).abs().max().item(),
        "greedy_tokens_equal": int((torch.tensor(tokens) == likeliest.argmax(-1)).sum()),
    }


@config_dataclass
class LlamaCppConfig(MeasurementConfig):
    """Settings of ``python -m benchmarks llama-cpp``."""

    model: str
    """Checkpoint folder with its tokenizer."""
    lengths_tokens: tuple[int, ...] = (1, 65, 200, 700)
    """Lengths of the prompts, which are taken from the start of the text."""
    num_new_tokens: int = 64
    """Number of greedy tokens after each prompt."""
    output: str | None = None
    """JSON Lines file to which the records are appended."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype != "float32":
            raise ValueError(f"llama.cpp is compared with a float32 model, got dtype {self.dtype!r}")


def measure_llama_cpp(config: LlamaCppConfig) -> list[Record]:
    """Run a checkpoint as float32 GGUF in llama.cpp, and return one ``gguf`` record per length and precision.

    Raises:
        ValueError: The checkpoint cannot be exported to GGUF, the text is too short, or xllamacpp is not installed.
    """
    text = load_text(config, load_model_tokenizer(config.model))
    text.check_length(max(config.lengths_tokens))
    model = load_causal_lm(config.model, attn_implementation=config.attn_implementation)
    source = measurement_provenance(config, text, checkpoint_fingerprint(config.model))
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.gguf")
        context_length = max(config.lengths_tokens) + config.num_new_tokens
        export_gguf(config.model, file, context_length_tokens=context_length)
        for precision in PRECISIONS:
            llama = LlamaCpp(file, precision=precision)
            for length in config.lengths_tokens:
                record = {
                    "kind": "gguf",
                    "name": Path(config.model).resolve().name,
                    "num_heads": model.config.num_attention_heads,
                    "length_tokens": length,
                    "num_new_tokens": config.num_new_tokens,
                    "precision": precision,
                    **compare(llama, model, text.stream.input_ids[:length].tolist(), config.num_new_tokens),
                    "llama_cpp": f"{LLAMA_CPP_PACKAGE} {metadata.version(LLAMA_CPP_PACKAGE)}",
                    "provenance": source,
                }
                check_record(record)
                records.append(record)
    if config.output is not None:
        for record in records:
            append_record(config.output, record)
    return records
