"""The plain GPT is one, of the size of ours; both loops are timed on the same steps."""

import torch

from benchmarks.loops import LoopCase, PlainGPT, make_model, plain_loop, time_loops, trainer_loop
from modeling_alibi_gpt.runtime.records import check_record, provenance


CASE = LoopCase(
    num_layers=2, hidden_size=32, num_heads=4, vocab_size=50, length_tokens=16, batch_size=3, num_steps=2, num_rounds=1
)


def test_the_plain_model_is_causal_and_of_the_size_of_ours() -> None:
    torch.manual_seed(0)
    plain = PlainGPT(CASE)
    num_parameters = sum(parameter.numel() for parameter in plain.parameters())
    assert num_parameters == make_model(CASE).num_parameters() + CASE.length_tokens * CASE.hidden_size
    tokens = torch.randint(50, (1, 16))
    states = []
    plain.norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    for _ in range(2):
        plain(tokens)
        tokens[0, 9] = (tokens[0, 9] + 1) % 50
    assert torch.equal(states[0][:, :9], states[1][:, :9]) and not torch.equal(states[0][:, 9:], states[1][:, 9:])


def test_both_loops_learn() -> None:
    """A text of one token is certain after some steps."""
    case = LoopCase(
        num_layers=1, hidden_size=32, num_heads=4, vocab_size=50, length_tokens=16, batch_size=1, num_steps=150
    )
    tokens = torch.full((150, 16), 7)
    plain, ours = PlainGPT(case), make_model(case)
    plain_loop(plain, tokens, case)
    trainer_loop(ours, tokens, case, torch.device("cpu"))
    with torch.no_grad():
        assert plain(tokens[:1]) < 0.5
        assert ours(tokens[:1], labels=tokens[:1]).loss < 0.5


def test_records_have_both() -> None:
    records = list(time_loops(CASE, torch.device("cpu")))
    assert [record["name"] for record in records] == ["plain loop", "alibi_gpt trainer"]
    for record in records:
        check_record({**record, "num_threads": 1, "provenance": provenance(seed=0)})
        assert record["tokens_per_second"] > 0 and record["times_reference"] > 0
