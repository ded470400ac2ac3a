"""llama.cpp runs what ``export_gguf`` wrote: log-probabilities, greedy tokens and tokenization are the model's."""

import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.llama_cpp import LlamaCpp, LlamaCppConfig, compare, measure_llama_cpp
from modeling_alibi_gpt.checkpoints.convert.conversion import ConvertConfig, convert
from modeling_alibi_gpt.checkpoints.gguf.export import export_gguf
from modeling_alibi_gpt.runtime.records import read_records


pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.integrations

LENGTHS = (1, 65, 200, 700)  # the training length of the models is 32
NUM_NEW_TOKENS = 64
MODELS = {
    "grouped keys, six heads": {},
    "eight heads": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "as in MPT": {"use_bias": False, "tie_word_embeddings": False, "clip_qkv": 1.0, "alibi_bias_max": 4.0},
    "tanh GELU": {"hidden_act": "gelu_new", "intermediate_size": 100},
}
TEXTS = (
    *("", " a window", "trailing ", "trailing \n", "it's we'll I'VE", "123 4567 x1y2", "a\n\n\nb", "\t\ta \r\n"),
    *(
        "na\u00efve \u2192 \u03a9 \u6f22\u5b57 \U0001f600 e\u0301",
        "no\u00a0break\u3000wide",
        "f(x_1, 'y')  # z",
        "\x00\x1f\x85",
    ),
    "<|endoftext|>",
)


@pytest.fixture
def export(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[[PreTrainedModel], Path]:
    def make(model: PreTrainedModel) -> Path:
        add_noise(model)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        file = tmp_path / "model.gguf"
        context_length = max(LENGTHS) + NUM_NEW_TOKENS
        export_gguf(tmp_path, file, context_length_tokens=context_length)
        return file

    return make


@torch.no_grad()
def add_noise(model: PreTrainedModel) -> None:
    """Biases and norms start as zeros and ones, which a file could drop unseen."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def draw_tokens(model: PreTrainedModel, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, model.config.vocab_size, (length,), generator=generator).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_is_as_exact_as_pytorch(name: str, make_model: Callable, export: Callable) -> None:
    """At most twice the error of PyTorch in float32, against float64 with the GELU that ggml computes."""
    model = make_model(**MODELS[name])
    llama = LlamaCpp(export(model), precision="float32")
    found = [compare(llama, model, draw_tokens(model, length), NUM_NEW_TOKENS) for length in LENGTHS]
    error, yardstick = (
        max(each[key] for each in found) for key in ("max_rounding_error_nats", "torch_rounding_error_nats")
    )
    assert error <= 2 * yardstick
    assert all(each["greedy_tokens_equal"] == NUM_NEW_TOKENS for each in found)

    # The comparison can tell: slopes one percent steeper stand out.
    model.model.position_method.slopes *= 1.01
    steeper = compare(llama, model, draw_tokens(model, 200), NUM_NEW_TOKENS)
    assert steeper["max_rounding_error_nats"] > 10 * yardstick


def test_llama_cpp_tokenizes_alike(make_model: Callable, export: Callable, tokenizer: PreTrainedTokenizerFast) -> None:
    llama = LlamaCpp(export(make_model()))
    for text in TEXTS:
        assert llama.tokenize(text) == tokenizer(text, split_special_tokens=True)["input_ids"]


def test_llama_cpp_tokenizes_normalized_text_as_a_tokenizer_that_normalizes(
    make_model: Callable, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """MPT's: NFC, and runs of spaces as tokens of their own. What is not in NFC comes out as without a normalizer."""
    tokenizer.save_pretrained(tmp_path)
    as_in_mpt = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    as_in_mpt.backend_tokenizer.normalizer = normalizers.NFC()
    as_in_mpt.add_tokens([AddedToken(" " * length, normalized=True) for length in range(24, 1, -1)])
    as_in_mpt.save_pretrained(tmp_path)
    make_model(vocab_size=len(as_in_mpt)).save_pretrained(tmp_path)
    export_gguf(tmp_path, tmp_path / "model.gguf")
    llama = LlamaCpp(tmp_path / "model.gguf")
    texts = [
        *TEXTS,
        "    a   window  plan \n      b" + 30 * " ",
        "\uac01 \u1ea5 \u00e9\u0302",
        "e\u0301",
        "\u212b \u2126",
    ]
    for text in texts:
        expected = as_in_mpt(text, split_special_tokens=True)["input_ids"]
        assert llama.tokenize(unicodedata.normalize("NFC", text)) == expected
        if not unicodedata.is_normalized("NFC", text):
            assert llama.tokenize(text) != expected


CONVERTER = """
import runpy, sys
root, sys.argv[1:] = sys.argv[1], sys.argv[2:]
sys.path[:0] = [root, f"{root}/gguf-py"]
from conversion.base import TextModel
# It converts with tokenizers that are in its list only; ours splits as that of GPT-2 does.
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(f"{root}/convert_hf_to_gguf.py", run_name="__main__")
"""
FOR_THE_CONVERTER = {
    "bloom": {"hidden_act": "gelu_pytorch_tanh", "embedding_layer_norm": True},
    "mpt": {"use_bias": False},
    "mpt as llm-foundry has it": {"clip_qkv": 1.0, "alibi_bias_max": 4.0, "tie_word_embeddings": False},
}


@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP is not the folder of llama.cpp's source")
@pytest.mark.parametrize("name", FOR_THE_CONVERTER)
def test_llama_cpps_own_converter_reads_exports(
    name: str, make_model: Callable, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "train_context_length": 128}
    model = make_model(**heads, **FOR_THE_CONVERTER[name])
    add_noise(model)
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    family = name.split()[0]
    options = {"to": family, "flavour": "llm-foundry" if family == "mpt" else "transformers"}
    convert(ConvertConfig(model=str(tmp_path / "ours"), output_dir=str(tmp_path / "out"), **options))
    arguments = [str(tmp_path / "out"), "--outfile", str(tmp_path / "model.gguf"), "--outtype", "f32"]
    subprocess.run([sys.executable, "-c", CONVERTER, os.environ["LLAMA_CPP"], *arguments], check=True)
    llama = LlamaCpp(tmp_path / "model.gguf", precision="float32")
    found = [compare(llama, model, draw_tokens(model, length), 8) for length in (1, 60, 100)]
    error, yardstick = (
        max(each[key] for each in found) for key in ("max_rounding_error_nats", "torch_rounding_error_nats")
    )
    assert error <= 2 * yardstick
    assert all(each["greedy_tokens_equal"] == 8 for each in found)


def test_a_record_for_each_length_and_precision(
    make_model: Callable, export: Callable, text: str, tmp_path: Path
) -> None:
    export(make_model())
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    output = tmp_path / "gguf.jsonl"
    records = measure_llama_cpp(
        LlamaCppConfig(
            model=str(tmp_path),
            source=f"text:{tmp_path / 'text.txt'}",
            lengths_tokens=(3, 40),
            num_new_tokens=8,
            output=str(output),
        )
    )
    assert read_records(output) == records
    assert [(each["precision"], each["length_tokens"]) for each in records] == [
        *(("default", 3), ("default", 40)),
        *(("float32", 3), ("float32", 40)),
    ]
    for default, in_float32 in zip(records[:2], records[2:], strict=True):
        assert in_float32["max_rounding_error_nats"] < default["max_rounding_error_nats"]
        assert default["greedy_tokens_equal"] == in_float32["greedy_tokens_equal"] == 8
        assert in_float32["llama_cpp"].startswith("xllamacpp ")
