"""A beta that follows a schedule: the same after any resume, with every way to compute attention, and as saved."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM, AlibiGPTForSequenceClassification
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.training.beta_schedule import BetaScheduleCallback, set_alibi_beta
from modeling_alibi_gpt.training.experiment import BetaSchedule, ExperimentConfig
from modeling_alibi_gpt.training.preflight import check_experiment
from modeling_alibi_gpt.training.trainer import train
from tests.support.train_commands import exit_code, start_training
from tests.training.test_resume import outcome


SCHEDULE = "alibi_beta_schedule={start: 32, end: 1, share: 0.5}"
# Short enough for a folded mask, and long enough for strips.
LENGTHS = (24, 800)


def tiny_model(implementation: str = "sdpa", **fields: Any) -> AlibiGPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AlibiGPTConfig(**{**sizes, **fields})
    return AlibiGPTForCausalLM._from_config(config, attn_implementation=implementation).eval()


def test_beta_goes_by_a_constant_ratio_and_then_stays() -> None:
    schedule = BetaSchedule(start=32, end=2, share=0.5)
    betas = [schedule.beta_at(step, 8) for step in range(9)]
    assert betas == pytest.approx([32, 16, 8, 4, 2, 2, 2, 2, 2])
    assert betas[4:] == [2.0] * 5
    rising = BetaSchedule(start=0.5, end=8)
    assert [rising.beta_at(step, 4) for step in range(5)] == pytest.approx([0.5, 1, 2, 4, 8])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "alibi_banded", "flex_attention", "compiled"])
def test_a_set_beta_reads_as_one_that_was_built_in(implementation: str, length: int) -> None:
    """Also in a model that has already made a pass with another beta, whose graph and masks must not last."""
    back_end = "sdpa" if implementation == "compiled" else implementation
    model, expected = tiny_model(back_end), tiny_model(back_end, alibi_beta=6.0)
    read, read_expected = model, expected
    num_compiled = []
    if implementation == "compiled":
        torch._dynamo.reset()

        def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            num_compiled.append(graph)
            return graph.forward

        read = torch.compile(model, backend=count)
    tokens = torch.randint(32, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = read(tokens, use_cache=False).logits
        graphs = len(num_compiled)
        set_alibi_beta(model, 6.0)
        after, built_in = read(tokens, use_cache=False).logits, read_expected(tokens, use_cache=False).logits
    assert len(num_compiled) == graphs
    if implementation == "compiled":
        torch.testing.assert_close(after, built_in)
    else:
        assert torch.equal(after, built_in)
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_set_beta_is_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_model(alibi_slope_kind="custom", alibi_slopes=[0.3, 0.2])
    model.save_pretrained(tmp_path / "one")
    model = AlibiGPTForCausalLM.from_pretrained(tmp_path / "one")
    set_alibi_beta(model, 3)
    model.save_pretrained(tmp_path / "three")
    loaded = AlibiGPTForCausalLM.from_pretrained(tmp_path / "three")
    assert loaded.config.alibi_beta == 3.0
    assert torch.equal(loaded.model.position_method.slopes, torch.tensor([3 * 0.3, 3 * 0.2]))
    assert torch.equal(model.model.position_method.slopes, loaded.model.position_method.slopes)
    classifier = AlibiGPTForSequenceClassification(loaded.config)
    set_alibi_beta(torch.nn.ModuleList([classifier]), 4.0)
    assert classifier.config.alibi_beta == 4.0


@pytest.mark.parametrize(
    ("fields", "beta", "message"),
    [
        ({}, 0.0, "finite number above 0, got 0.0"),
        ({}, math.nan, "finite number above 0, got nan"),
        ({"alibi_trainable": "slopes"}, 2.0, "alibi_trainable none, got slopes"),
        ({"alibi_trainable": "beta"}, 2.0, "alibi_trainable none, got beta"),
        ({"position_method": "rope"}, 2.0, "got another position method"),
    ],
)
def test_a_beta_that_would_not_be_read_is_not_set(fields: dict[str, Any], beta: float, message: str) -> None:
    model = tiny_model(**fields)
    before = {name: value.clone() for name, value in [*model.named_buffers(), *model.named_parameters()]}
    with pytest.raises(ValueError, match=message):
        set_alibi_beta(model, beta)
    after = dict([*model.named_buffers(), *model.named_parameters()])
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert getattr(model.config, "alibi_beta", 1.0) == 1.0


class Betas(TrainerCallback):
    """What slopes and config say at every step and evaluation, as multiples of those of beta 1."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, float, float]] = []

    def _note(self, event: str, state: Any, model: AlibiGPTForCausalLM) -> None:
        slopes = model.model.position_method.slopes
        self.seen.append((event, state.global_step, float(slopes[0] / 2**-4), model.config.alibi_beta))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("step", state, kwargs["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("evaluation", state, kwargs["model"])


def test_steps_evaluations_and_checkpoints_have_the_beta_of_their_step(make_experiment: Callable[..., Any]) -> None:
    config = make_experiment(SCHEDULE, "training.eval_strategy=steps", "training.eval_steps=4")
    watcher = Betas()
    train(config, callbacks=[watcher])
    assert [(event, step) for event, step, _, _ in watcher.seen if event == "step"] == [("step", n) for n in range(10)]
    assert [step for event, step, _, _ in watcher.seen if event == "evaluation"] == [4, 8, 10]
    for _, step, slope, beta in watcher.seen:
        assert slope == pytest.approx(beta) == max(1.0, 32 * 32 ** (-step / 5))
    folder = Path(config.training["output_dir"])
    saved = {path.parent.name: json.loads(path.read_text())["alibi_beta"] for path in folder.rglob("config.json")}
    assert saved == {"checkpoint-8": 1.0, "checkpoint-10": 1.0, "run": 1.0}


@pytest.mark.parametrize("killed_at", ["os.mkdir checkpoint-4", "os.mkdir checkpoint-8"])
def test_a_killed_training_goes_on_with_its_beta(
    experiment_file: Path, write_experiment: Callable[[Path], Path], tmp_path: Path, killed_at: str
) -> None:
    settings = ["alibi_beta_schedule={start: 32, end: 1}", "training.save_steps=2"]
    (tmp_path / "straight").mkdir()
    straight_file = write_experiment(tmp_path / "straight")
    straight = start_training(straight_file, *settings)
    assert exit_code(start_training(experiment_file, *settings, killed_at=killed_at)) == -signal.SIGKILL
    newest = max(tmp_path.glob("run/checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
    assert 1 < json.loads(newest.read_text())["alibi_beta"] < 32
    assert exit_code(start_training(experiment_file, *settings)) == 0
    assert exit_code(straight) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight" / "run")
    fixed = load_config(ExperimentConfig, str(straight_file), [f"training.output_dir={tmp_path / 'fixed'}"])
    train(fixed)
    assert outcome(tmp_path / "fixed") != outcome(tmp_path / "run")


def test_any_trainer_takes_the_callback(tmp_path: Path) -> None:
    def trainer(folder: str, **arguments: Any) -> tuple[Trainer, Betas]:
        watcher, schedule = Betas(), BetaScheduleCallback(BetaSchedule(start=16, end=1))
        arguments = {"max_steps": 4, "save_steps": 1, "logging_steps": 1, "report_to": [], **arguments}
        made = TrainingArguments(str(tmp_path / folder), use_cpu=True, disable_tqdm=True, **arguments)
        data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 32
        return Trainer(tiny_model(), made, None, data, data, callbacks=[schedule, watcher]), watcher

    straight, seen = trainer("straight")
    straight.train()
    assert [beta for *_, beta in seen.seen] == pytest.approx([16, 8, 4, 2])
    assert straight.model.config.alibi_beta == 1.0
    resumed, seen = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert [beta for *_, beta in seen.seen] == pytest.approx([4, 2])
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    best, _ = trainer("best", load_best_model_at_end=True, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="load_best_model_at_end cannot be used with alibi_beta_schedule"):
        best.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([SCHEDULE, "model.overrides.position_method=rope"], "a model with position_method alibi, got rope"),
        ([SCHEDULE, "model.overrides.alibi_trainable=slopes"], "a model with alibi_trainable none, got slopes"),
        ([SCHEDULE, "model.overrides.alibi_beta=2"], "alibi_beta 2 would have no effect"),
        (
            [
                SCHEDULE,
                "training.load_best_model_at_end=true",
                "training.eval_strategy=steps",
                "training.eval_steps=4",
            ],
            "weights may belong to another beta",
        ),
        (
            [SCHEDULE, "early_stopping.patience_evaluations=1", "training.eval_strategy=steps"],
            "early_stopping cannot be used with alibi_beta_schedule: .* another beta than the end of the schedule",
        ),
        (["alibi_beta_schedule={start: 0, end: 1}"], "alibi_beta_schedule.start' must be above 0, got 0"),
        (["alibi_beta_schedule={start: 2, end: -1}"], "alibi_beta_schedule.end' must be above 0, got -1"),
        (
            ["alibi_beta_schedule={start: 2, end: 1, share: 1.5}"],
            "share' must be at most 1, got 1.5",
        ),
        (["alibi_beta_schedule={start: 2}"], "'alibi_beta_schedule.end' is missing"),
        (["alibi_beta_schedule={start: 2, end: 1, stop: 1}"], "unknown key 'alibi_beta_schedule.stop'"),
    ],
)
def test_what_a_schedule_cannot_do_is_refused(
    make_experiment: Callable[..., Any], settings: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_experiment(make_experiment(*settings))
    check_experiment(make_experiment(SCHEDULE, "model.overrides.alibi_beta=32"))
