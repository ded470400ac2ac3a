"""``transformers serve`` with continuous batching answers from a saved checkpoint folder.

The stock command does not know the model, and ``--trust-remote-code`` does not help it: it looks for the class among
the attributes of transformers itself. ``alibi-gpt serve FOLDER`` is the same command with it there.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available


pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed"),
]
START_SECONDS = 120
ANSWER_SECONDS = 60
NUM_NEW_TOKENS = 10
# Pages smaller than the prompts, and batches smaller than all prompts together.
BATCHING = ["--cb-block-size", "16", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "32", "--no-cb-use-cuda-graph"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(address: str, path: str, body: dict | None = None, timeout_seconds: float = 5.0) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_seconds) as response:
        return json.load(response)


def wait_until_ready(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        try:
            ask(address, "/health")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(f"no server after {START_SECONDS} seconds: {log.read_text(encoding='utf-8')}")


@pytest.fixture
def model(make_model):
    model = make_model()
    model.generation_config.update(do_sample=False, max_new_tokens=NUM_NEW_TOKENS)
    return model


@pytest.fixture
def address(model, tokenizer, tmp_path: Path) -> Iterator[str]:
    """A server of the model's checkpoint folder, on a free port of this machine."""
    folder, log, port = tmp_path / "model", tmp_path / "serve.log", free_port()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    command = [sys.executable, "-m", "alibi_gpt_cli", "serve", str(folder), "--continuous-batching", *BATCHING]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_the_server_answers_as_generate_does(address: str, model, tokenizer, text: str, tmp_path: Path) -> None:
    """Prompts of unlike lengths, some beyond the training length of 32 tokens, asked at the same time."""
    prompts = ["plan window", text[:50], text[:200], text[:200] + " slope"]

    def complete(prompt: str) -> str:
        body = {"model": str(tmp_path / "model"), "prompt": prompt, "max_tokens": NUM_NEW_TOKENS, "temperature": 0}
        return ask(address, "/v1/completions", body, ANSWER_SECONDS)["choices"][0]["text"]

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(complete, prompts))
    assert len(set(answers)) > 1
    assert "CB: True" in (tmp_path / "serve.log").read_text(encoding="utf-8")
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(tokens)[0, tokens.shape[1] :]
        assert answer == tokenizer.decode(expected, skip_special_tokens=True)
