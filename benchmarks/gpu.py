"""Test and time everything on one GPU in ten minutes, cheap and important parts first.

python -m benchmarks.gpu --output-dir runs/gpu                       all parts
python -m benchmarks.gpu --parts correctness,attention --seconds 300

Each part runs in its own process and writes each record to OUTPUT_DIR at once, so a part that fails, hangs or breaks
the device loses only its remaining measurements. --tiny runs everything on a CPU at toy sizes, to test the script.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from modeling_alibi_gpt.runtime.records import append_record, provenance


ROOT = Path(__file__).resolve().parents[1]
EVIDENCE_CONFIG = "configs/comparison/methods_gutenberg_gpu.yaml"
NUM_TEST_WORKERS = 14
NUM_EVIDENCE_WORKERS = 4


class Part(NamedTuple):
    """One step of the run.

    Attributes:
        commands: Maps the output folder and whether sizes are tiny to the commands of the part, which run in parallel.
        finish: Called afterwards with the output folder and the elapsed seconds.
        environment: Additional environment variables of the processes.
    """

    commands: Callable[[Path, bool], list[list[str]]]
    finish: Callable[[Path, float], None] = lambda output_dir, seconds: None
    environment: dict[str, str] = {}


def _test_commands(output_dir: Path, is_tiny: bool) -> list[list[str]]:
    # The tiny run selects fast tests that do not need CUDA.
    chosen = (
        ["-k", "(awkward and sdpa and 65 and not half) or (static and alibi_beta)"]
        if is_tiny
        else ["-n", str(NUM_TEST_WORKERS)]
    )
    return [[sys.executable, "-m", "pytest", "-v", "--tb=short", "-m", "gpu", "tests/gpu", *chosen]]


def _record_tests(output_dir: Path, seconds: float) -> None:
    """Record outcomes from the log, which also shows how far the tests got before a timeout."""
    outcomes: dict[str, str] = {}
    for line in (output_dir / "correctness.log").read_text(encoding="utf-8", errors="replace").splitlines():
        if name := re.search(r"tests/gpu/\S+::\S+", line):
            ended = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line)
            outcomes[name.group()] = ended.group() if ended else outcomes.get(name.group(), "STARTED")
    names = {outcome: [name for name, found in outcomes.items() if found == outcome] for outcome in outcomes.values()}
    failures = [*names.get("FAILED", []), *names.get("ERROR", [])]
    append_record(
        output_dir / "correctness.jsonl",
        {
            "kind": "gpu_tests",
            "passed": len(names.get("PASSED", [])),
            "failed": len(failures),
            "skipped": len(names.get("SKIPPED", [])),
            "seconds": seconds,
            "failures": failures,
            "unfinished": names.get("STARTED", []),
            "provenance": provenance(),
        },
    )


def _attention_commands(output_dir: Path, is_tiny: bool) -> list[list[str]]:
    return [_module("benchmarks.gpu_attention", output_dir / "attention.jsonl", is_tiny)]


def _model_commands(output_dir: Path, is_tiny: bool) -> list[list[str]]:
    return [_module("benchmarks.gpu_models", output_dir / "models.jsonl", is_tiny)]


def _evidence_commands(output_dir: Path, is_tiny: bool) -> list[list[str]]:
    command = [sys.executable, "-m", "alibi_gpt_cli", "compare", "--config", EVIDENCE_CONFIG]
    settings = [f"output_dir={output_dir / 'evidence'}"]
    if is_tiny:
        settings += [
            'experiment_overrides=["data.source=stdlib", "data.validation_source=null", "training.max_steps=2", '
            '"data.max_validation_tokens=2048", "data.train_length_tokens=32", "global_batch_size=2", '
            '"model.config.num_hidden_layers=1", "model.config.hidden_size=48", "model.config.vocab_size=300"]',
            "evaluation.source=stdlib",
            "evaluation.max_tokens=2048",
            "evaluation.lengths_tokens=[32, 64]",
            "seeds=[0]",
        ]
    command += [word for setting in settings for word in ("--set", setting)]
    return [command] * (1 if is_tiny else NUM_EVIDENCE_WORKERS)


def _module(name: str, output: Path, is_tiny: bool) -> list[str]:
    return [sys.executable, "-m", name, "--output", str(output), *(["--tiny"] if is_tiny else [])]


PARTS = {
    # Each worker compiles on its own; a compiler pool per worker would oversubscribe the CPU.
    "correctness": Part(_test_commands, _record_tests, {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}),
    "attention": Part(_attention_commands),
    "models": Part(_model_commands),
    "evidence": Part(_evidence_commands),
}


def run_part(name: str, output_dir: Path, seconds: float, is_tiny: bool) -> int:
    """Run one part for at most ``seconds`` and write its output to a log.

    Returns:
        0, or the first nonzero exit status; 124 after a timeout.
    """
    start = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | PARTS[name].environment
    if is_tiny:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ALIBI_GPT_TEST_DEVICE": "cpu"}
    with (output_dir / f"{name}.log").open("w", encoding="utf-8") as log:
        processes = [
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            for command in PARTS[name].commands(output_dir, is_tiny)
        ]
        try:
            statuses = [process.wait(max(0.0, start + seconds - time.monotonic())) for process in processes]
        except subprocess.TimeoutExpired:
            statuses = [124]
        finally:
            for process in processes:
                _end(process)
    PARTS[name].finish(output_dir, time.monotonic() - start)
    return next((status for status in statuses if status), 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its workers, which would otherwise disturb the timing of the next part."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", default="runs/gpu", metavar="DIR", help="folder for records and logs")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, in this order (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=570.0, help="time limit for all parts (default %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    names = args.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        print(f"error: unknown part {', '.join(unknown)}; expected one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    output_dir = Path(args.output_dir).resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.seconds
    worst = 0
    for name in names:
        start = time.monotonic()
        status = run_part(name, output_dir, deadline - start, args.tiny)
        worst = worst or status
        print(f"{name}: exit {status} after {time.monotonic() - start:.0f} s", flush=True)
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
