"""Time whole models in bfloat16: training against GPT-2 and Llama of transformers, and decoding after long texts."""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.models import Shape, decoding_figures, describe_shape, make_model
from benchmarks.timing import extra_bytes, summarize, time_interleaved
from modeling_alibi_gpt.runtime.records import Record, append_record, provenance
from modeling_alibi_gpt.training.throughput import known_peak_flops, training_flops_per_token


SHAPES = {
    "125M": Shape(num_layers=12, hidden_size=768, num_heads=12, vocab_size=50_304),
    "1.3B": Shape(num_layers=24, hidden_size=2048, num_heads=32, vocab_size=50_304),
    "tiny": Shape(num_layers=1, hidden_size=32, num_heads=2, vocab_size=300),
}


def _make_model(name: str, shape: Shape, length_tokens: int, device: torch.device, **fields: Any) -> PreTrainedModel:
    """``gpt2``, ``llama`` or AlibiGPT with a back end, in bfloat16 with random weights, created on the device."""
    with device:
        if name in ("gpt2", "llama"):
            model = make_model(name, shape, length_tokens)
        else:
            model = make_model("alibi_gpt", shape, length_tokens, attn_implementation=name, **fields)
    return model.to(torch.bfloat16)


def time_training(
    shape_name: str, length_tokens: int, num_rows: int, num_rounds: int, back_ends: Sequence[str]
) -> Iterator[Record]:
    """Time forward, backward and a step of fused AdamW."""
    shape, device = SHAPES[shape_name], _device()
    names = ["gpt2", "llama", *back_ends]
    models = {name: _make_model(name, shape, length_tokens, device).train() for name in names}
    tokens = torch.randint(shape.vocab_size, (num_rows, length_tokens), device=device)
    candidates = {name: partial(_step, model, _optimizer(model), tokens) for name, model in models.items()}
    candidates = {name: run for name, run in candidates.items() if _runs(name, run)}
    memory = {name: extra_bytes(run) for name, run in candidates.items()}
    for name, figures in summarize(time_interleaved(candidates, num_rounds), "gpt2").items():
        tokens_per_second = num_rows * length_tokens / figures["seconds"]
        flops, peak = training_flops_per_token(models[name], length_tokens), known_peak_flops(device, bf16=True)
        yield _record(
            "model_speed",
            name if name in ("gpt2", "llama") else f"alibi_gpt {name}",
            shape,
            figures,
            mode="optimizer_step",
            length_tokens=length_tokens,
            num_rows=num_rows,
            num_parameters=models[name].num_parameters(),
            extra_bytes=memory[name],
            tokens_per_second=tokens_per_second,
            model_flops_utilization=flops * tokens_per_second / peak if peak else None,
        )


def _step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def time_decoding(shape_name: str, context_tokens: int, num_rounds: int) -> Iterator[Record]:
    """Time one greedy token after a long text, with one row: AlibiGPT with each cache against Llama."""
    shape, device = SHAPES[shape_name], _device()
    prompt = torch.randint(shape.vocab_size, (1, context_tokens), device=device)
    models = {
        "llama": _make_model("llama", shape, context_tokens, device),
        "sdpa": _make_model("sdpa", shape, context_tokens, device, qk_norm=True),
        "alibi_banded": _make_model("alibi_banded", shape, context_tokens, device, qk_norm=True),
    }
    for name, figures in decoding_figures(models, prompt, num_rounds).items():
        if name == "llama":
            figures["max_difference"] = None  # another model
        yield _record(
            "decode_speed",
            name if name == "llama" else f"alibi_gpt {name}",
            shape,
            figures,
            context_tokens=context_tokens,
            tokens_per_second=1 / figures["seconds"],
        )


def _record(kind: str, name: str, shape: Shape, figures: Record, **fields: Any) -> Record:
    record = {"kind": kind, "name": name, "dtype": "bfloat16", **describe_shape(shape)}
    return {**record, **figures, **fields, "provenance": provenance(seed=0)}


def _runs(name: str, run: Callable[[], None]) -> bool:
    """Whether a candidate runs at all. If one fails, the others are still timed."""
    try:
        run()
    except Exception:
        print(f"{name} does not run:", flush=True)
        traceback.print_exc()
        return False
    return True


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Training: shape, tokens, rows, rounds, back ends of AlibiGPT. Decoding: shape, context tokens, rounds. The slowest
# case is last.
CASES: list[tuple[Callable[..., Iterator[Record]], tuple[Any, ...]]] = [
    (time_training, ("125M", 2048, 16, 8, ("sdpa", "alibi_banded"))),
    (time_training, ("125M", 16_384, 2, 8, ("sdpa", "alibi_banded"))),
    (time_decoding, ("125M", 1024, 30)),
    (time_decoding, ("125M", 16_384, 30)),
    (time_decoding, ("125M", 65_536, 20)),
    (time_training, ("1.3B", 2048, 4, 5, ("sdpa", "alibi_banded"))),
]
TINY_CASES = [(time_training, ("tiny", 32, 2, 1, ("sdpa", "alibi_banded"))), (time_decoding, ("tiny", 40, 1))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, metavar="FILE.jsonl", help="file to which records are appended")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    args = parser.parse_args(argv)
    cases = TINY_CASES if args.tiny else CASES
    status = 0
    for run, case in cases:
        try:
            for record in run(*case):
                append_record(args.output, record)
                print(
                    f"{case[0]} {record['name']}: {record['tokens_per_second']:,.0f} tokens/s, "
                    f"{record['times_reference']:.3f}x {record['reference']}",
                    flush=True,
                )
        except Exception:
            traceback.print_exc()
            status = 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return status


if __name__ == "__main__":
    sys.exit(main())
