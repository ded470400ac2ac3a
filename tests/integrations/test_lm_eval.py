"""lm-evaluation-harness through ``HFLM``, beyond the training length: its figures are those of our own evaluation."""

import functools

import pytest
import torch

from modeling_alibi_gpt.evaluation.scoring import score_stream


pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402


pytestmark = pytest.mark.integrations
# Two float32 computations of a model's logits agree to 1e-5, and a loss follows its logits by twice that at most.
NATS_TOLERANCE = 2e-5


def ask(language_model: HFLM, kind: str, arguments: list[tuple[str, ...]]) -> list:
    requests = [Instance(request_type=kind, doc={}, arguments=pair, idx=index) for index, pair in enumerate(arguments)]
    return getattr(language_model, kind)(requests, disable_tqdm=True)


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def wrap(tokenizer):
    """HFLM reads four times as far as the model was trained, unless told otherwise."""

    def make(model, factor: int = 4) -> HFLM:
        max_length = factor * model.config.train_context_length
        return HFLM(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=3, device="cpu")

    return make


def rolling_nats(model, tokenizer, text: str, length_tokens: int) -> tuple[float, int]:
    """Our figure for the harness's protocol: windows that do not overlap, the last one with a whole context."""
    stream = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])
    num_tokens = len(stream) - 1
    num_last = num_tokens % length_tokens if num_tokens > length_tokens else 0
    score = functools.partial(score_stream, model, length_tokens=length_tokens, protocol="nonoverlapping")
    nats = score(stream[: len(stream) - num_last]).token_nats.sum()
    if num_last:
        nats += score(stream[-length_tokens - 1 :]).token_nats[-num_last:].sum()
    return nats, num_tokens


def test_rolling_loglikelihood_equals_our_perplexity(model, tokenizer, wrap, text: str) -> None:
    texts = [text, text[:300], text[100:1500]]
    for factor in (1, 4):
        measured = ask(wrap(model, factor), "loglikelihood_rolling", [(each,) for each in texts])
        for each, loglikelihood in zip(texts, measured, strict=True):
            nats, num_tokens = rolling_nats(model, tokenizer, each, factor * model.config.train_context_length)
            assert -loglikelihood == pytest.approx(nats, abs=num_tokens * NATS_TOLERANCE)


def test_loglikelihood_of_a_continuation_equals_our_loss(model, tokenizer, wrap, text: str) -> None:
    """Contexts of several lengths share a batch, padded on the right without a mask."""
    words = text.split(" ")
    pairs = [(" ".join(words[:end]), " " + " ".join(words[end : end + 8])) for end in (2, 11, 17, 22)]
    measured = ask(wrap(model), "loglikelihood", pairs)
    longest = 0
    for (context, continuation), (loglikelihood, _) in zip(pairs, measured, strict=True):
        stream = torch.tensor(tokenizer(context + continuation)["input_ids"])
        num_scored = len(stream) - len(tokenizer(context)["input_ids"])
        scores = score_stream(model, stream, length_tokens=len(stream), protocol="nonoverlapping")
        nats = scores.token_nats[-num_scored:].sum()
        assert -loglikelihood == pytest.approx(nats, abs=num_scored * NATS_TOLERANCE)
        longest = max(longest, len(stream))
    assert longest > 2 * model.config.train_context_length


def test_a_model_without_positions_has_other_figures(model, make_model, tokenizer, wrap, text: str) -> None:
    """The control: what is compared above depends on the bias by far more than the tolerance."""
    without = ask(wrap(make_model(position_method="none")), "loglikelihood_rolling", [(text,)])[0]
    nats, num_tokens = rolling_nats(model, tokenizer, text, 4 * model.config.train_context_length)
    assert abs(-without - nats) > 100 * num_tokens * NATS_TOLERANCE


def test_greedy_generation_equals_generate(model, tokenizer, wrap, text: str) -> None:
    prompts = [text[:20], text[:150]]
    settings = {"until": ["\n\n\n"], "max_gen_toks": 8, "do_sample": False}
    measured = ask(wrap(model), "generate_until", [(prompt, settings) for prompt in prompts])
    for prompt, answer in zip(prompts, measured, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(tokens, max_new_tokens=8, do_sample=False)[0, tokens.shape[1] :]
        assert answer == tokenizer.decode(expected, skip_special_tokens=True)
