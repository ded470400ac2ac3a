"""Measures ``alibi-gpt serve --continuous-batching`` on a CPU: seconds to the first answer, and memory."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.timing import status_bytes
from modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.runtime.records import Record, provenance


START_SECONDS = 180
ANSWER_SECONDS = 600
NUM_NEW_TOKENS = 16
# 60% of the memory is transformers' default on a CPU; passing it explicitly leaves the sizes to transformers.
CONTESTANTS = {"transformers' sizes": ("--cb-max-memory-percent", "0.6"), "sizes by alibi-gpt": ()}


def measure_serving(config_path: str, num_rounds: int = 3) -> Iterator[Record]:
    """Yield ``serving`` records of a random model, one for each way to size the cache. The ways alternate.

    Args:
        config_path: JSON file with the model's config.
        num_rounds: Number of servers to start for each way.
    """
    with tempfile.TemporaryDirectory(prefix="alibi-gpt-serving-") as folder:
        torch.manual_seed(0)
        model = AlibiGPTForCausalLM(AutoConfig.from_pretrained(config_path, trust_remote_code=False))
        model.save_pretrained(folder)
        train_tokenizer(load_documents("stdlib", "all"), model.config.vocab_size).save_pretrained(folder)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
        for _ in range(num_rounds):
            for name, options in CONTESTANTS.items():
                rounds[name].append(serving_costs(folder, options))
        num_parameters = model.num_parameters()
    for name, options in CONTESTANTS.items():
        costs = rounds[name]
        yield {
            "kind": "serving",
            "contestant": name,
            "options": list(options),
            "num_parameters": num_parameters,
            "num_new_tokens": NUM_NEW_TOKENS,
            **{key: [cost[key] for cost in costs] for key in costs[0]},
            "provenance": provenance(seed=0),
        }


def serving_costs(folder: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Start a server, request the same completion twice, and read its peak resident memory."""
    started = time.perf_counter()
    with running_server(folder, options) as (server, address):
        ready_seconds = time.perf_counter() - started
        body = {"model": folder, "prompt": "def", "max_tokens": NUM_NEW_TOKENS, "temperature": 0}
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            ask(f"{address}/v1/completions", body, ANSWER_SECONDS)
            seconds.append(time.perf_counter() - started)
        peak_bytes = status_bytes("VmHWM", server.pid)
    return {
        "ready_seconds": ready_seconds,
        "first_answer_seconds": seconds[0],
        "second_answer_seconds": seconds[1],
        "peak_memory_bytes": peak_bytes,
    }


@contextmanager
def running_server(folder: str, options: tuple[str, ...]) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start a server for a checkpoint folder on a free port, and yield it and its address once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "alibi_gpt_cli", "serve", folder, "--continuous-batching", *options]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    address, log = f"http://127.0.0.1:{port}", Path(folder, "serve.log")
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"the server did not start: {log.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        yield server, address
    finally:
        server.kill()
        server.wait()


def ask(url: str, body: dict[str, Any] | None, timeout_seconds: float) -> dict[str, Any]:
    """Send a request and return the JSON response; ``body`` None sends a GET."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_seconds) as response:
        return json.load(response)


def _is_ready(address: str) -> bool:
    try:
        ask(f"{address}/health", None, 5.0)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True
