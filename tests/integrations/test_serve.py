"""``transformers serve`` with continuous batching answers from a saved checkpoint folder.

The stock command does not know the model, and ``--trust-remote-code`` does not help it: it looks for the class among
the attributes of transformers itself. ``alibi-gpt serve FOLDER`` is the same command with it there.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

from benchmarks.serving import ask, running_server


openai = pytest.importorskip("openai")
pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed"),
]
ANSWER_SECONDS = 120
NUM_NEW_TOKENS = 10
NUM_CLIENTS = 8
# Pages smaller than the prompts, and batches smaller than all prompts together.
BATCHING = ("--cb-block-size", "16", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "32", "--no-cb-use-cuda-graph")


@pytest.fixture(scope="module")
def model(make_model):
    model = make_model()
    model.generation_config.update(do_sample=False, max_new_tokens=NUM_NEW_TOKENS)
    return model


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder: str) -> Iterator[str]:
    with running_server(folder, BATCHING) as (_, address):
        yield address


def generated(model, tokenizer, prompt: str, num_tokens: int = NUM_NEW_TOKENS) -> str:
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    new = model.generate(tokens, max_new_tokens=num_tokens)[0, tokens.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def test_the_server_answers_as_generate_does(address: str, folder: str, model, tokenizer, text: str) -> None:
    """Prompts of unlike lengths, some beyond the training length of 32 tokens, asked at the same time."""
    prompts = ["plan window", text[:50], text[:200], text[:200] + " slope"]

    def complete(prompt: str) -> str:
        body = {"model": folder, "prompt": prompt, "max_tokens": NUM_NEW_TOKENS, "temperature": 0}
        return ask(f"{address}/v1/completions", body, ANSWER_SECONDS)["choices"][0]["text"]

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(complete, prompts))
    assert len(set(answers)) > 1
    assert "CB: True" in Path(folder, "serve.log").read_text(encoding="utf-8")
    assert answers == [generated(model, tokenizer, prompt) for prompt in prompts]


def test_streams_of_openais_client_run_side_by_side(address: str, folder: str, model, tokenizer, text: str) -> None:
    """Each client gets its text in pieces while the others get theirs; one that leaves in the middle harms none."""
    num_tokens = 40
    prompts = [text[start : start + 30 * (1 + start % 4)] for start in range(NUM_CLIENTS)]
    pieces: list[tuple[int, str]] = []  # in the order they came

    async def stream(client: "openai.AsyncOpenAI", number: int) -> None:
        answer = await client.completions.create(
            model=folder, prompt=prompts[number], max_tokens=num_tokens, temperature=0, stream=True
        )
        async for chunk in answer:
            if chunk.choices and chunk.choices[0].text:
                pieces.append((number, chunk.choices[0].text))
            if number == 0 and len(pieces) > NUM_CLIENTS:
                await answer.close()
                return

    async def stream_all() -> None:
        settings = {"base_url": f"{address}/v1", "api_key": "none", "timeout": ANSWER_SECONDS}
        async with openai.AsyncOpenAI(**settings) as client:
            await asyncio.gather(*(stream(client, number) for number in range(NUM_CLIENTS)))

    asyncio.run(stream_all())
    texts = ["".join(piece for owner, piece in pieces if owner == number) for number in range(NUM_CLIENTS)]
    # A stream holds bytes back until they are a whole character, so it sends none of one cut off by max_tokens.
    expected = [generated(model, tokenizer, prompt, num_tokens).rstrip("\ufffd") for prompt in prompts]
    assert len(set(expected)) > 1
    assert texts[1:] == expected[1:]
    assert expected[0].startswith(texts[0]) and texts[0] != expected[0]
    order = [owner for owner, _ in pieces]
    num_turns = sum(owner != previous for owner, previous in zip(order[1:], order, strict=False))
    assert num_turns > len(order) / 2, f"{NUM_CLIENTS - 1} turns would be one client after the other"
