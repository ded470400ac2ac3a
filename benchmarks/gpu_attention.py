"""Time ALiBi attention on a GPU against plain causal attention, by length: fused, banded, augmented and flex.

Flex attention kernels take long to compile. One process per head size and direction compiles in parallel; timing then
takes place in one process at a time.
"""

import argparse
import multiprocessing
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.attention import AttentionCase, time_attention
from modeling_alibi_gpt.runtime.records import Record, append_record, provenance


COMPILE_SECONDS = 150
VARIANTS = ["fused", "banded", "augmented", "flex"]
# Short texts come in batches of this many tokens.
BATCH_TOKENS = 16_384


def make_groups(variants: Sequence[str]) -> list[list[AttentionCase]]:
    """Cases by process. The first length of each compiles its own graph; the others share a dynamic one."""

    def case(length_tokens: int, num_rounds: int, **fields: Any) -> AttentionCase:
        return AttentionCase(
            lengths_tokens=[length_tokens],
            num_rounds=num_rounds,
            num_rows=max(1, BATCH_TOKENS // length_tokens),
            ways=list(variants),
            num_heads=32,
            dtypes=["bfloat16"],
            **fields,
        )

    groups = []
    for mode in ("forward", "forward_backward"):
        for head_dim in (64, 128):
            fields = {"mode": mode, "head_dim": head_dim}
            lengths = [(16_384, 15), (2048, 30), (1024, 30), (4096, 15), (8192, 15), (65_536, 3), (131_072, 2)]
            groups.append([case(length_tokens, num_rounds, **fields) for length_tokens, num_rounds in lengths])
    return groups


def make_tiny_groups() -> list[list[AttentionCase]]:
    shape = {"lengths_tokens": [64, 130], "num_heads": 2, "head_dim": 16, "num_rounds": 1}
    forward = AttentionCase(ways=["augmented", "flex", "banded"], **shape)
    return [[forward], [AttentionCase(ways=["augmented"], mode="forward_backward", **shape)]]


def time_group(group: Sequence[AttentionCase], output: str, everybody: Any, clock: Any) -> None:
    """Compile the kernels of a group, wait for the other groups, then time each case exclusively."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Two lengths, because torch compiles a dynamic graph at the second one.
        for case in group[:2]:
            for _ in time_attention(replace(case, num_rounds=1), device):
                pass
    except Exception:
        traceback.print_exc()
    try:
        everybody.wait(COMPILE_SECONDS)
    except threading.BrokenBarrierError:
        print("not all groups compiled in time", flush=True)
    failed = False
    for case in group:
        with clock:
            try:
                for figures in time_attention(case, device):
                    record = {**figures, "num_threads": torch.get_num_threads(), "provenance": provenance(seed=0)}
                    append_record(output, record)
                    print(describe(record), flush=True)
            except Exception:
                failed = True
                traceback.print_exc()  # go on with the other lengths
            if device.type == "cuda":
                torch.cuda.empty_cache()
    sys.exit(int(failed))


def describe(record: Record) -> str:
    return (
        f"{record['mode']:16} {record['head_dim']:3d} {record['length_tokens']:7,d} {record['name']:10} "
        f"{record['seconds'] * 1e3:9.3f} ms {record['times_reference']:7.3f}x"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, metavar="FILE.jsonl", help="file to which records are appended")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--ways", default=",".join(VARIANTS), help="implementations to time (default %(default)s)")
    args = parser.parse_args(argv)
    groups = make_tiny_groups() if args.tiny else make_groups(args.ways.split(","))
    context = multiprocessing.get_context("spawn")
    everybody, clock = context.Barrier(len(groups)), context.Lock()
    processes = [context.Process(target=time_group, args=(group, args.output, everybody, clock)) for group in groups]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return next((1 for process in processes if process.exitcode), 0)


if __name__ == "__main__":
    sys.exit(main())
