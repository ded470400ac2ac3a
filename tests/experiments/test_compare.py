"""Comparisons: variants, seeds, inference overrides of a trained model, workers that share, paired figures."""

import dataclasses
import importlib.util
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from modeling_alibi_gpt.experiments import compare as comparison
from modeling_alibi_gpt.experiments import runner
from modeling_alibi_gpt.experiments.compare import ComparisonConfig, _runs, run_comparison
from modeling_alibi_gpt.experiments.paired import comparison_records
from modeling_alibi_gpt.experiments.runner import load_experiment
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import check_record, read_records
from modeling_alibi_gpt.training.experiment import BetaSchedule, ExperimentConfig
from modeling_alibi_gpt.training.model_setup import model_config


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(source: str, tmp_path: Path) -> dict[str, Any]:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("A text that no run trains on.\n" * 40, encoding="utf-8")
    experiment = {
        "name": "base",
        "model": {"config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 264}},
        "data": {
            "source": source,
            "validation_source": f"text:{held_out}",
            "tokenizer": "train",
            "train_length_tokens": 8,
            "cache_dir": str(tmp_path / "cache"),
        },
        "global_batch_size": 2,
        "training": {"output_dir": "unused", "max_steps": 2, "logging_steps": 1, "save_steps": 1, "seed": 5},
    }
    return {
        "name": "tiny",
        "experiment": experiment,
        "variants": {
            "alibi": {},
            "no positions": {"position_method": "none"},
            "table": {"position_method": "learned"},
        },
        "inference_overrides": {"alibi": {"flatter": {"alibi_scaling": {"type": "linear", "factor": 4}}}},
        "reference": "alibi",
        "seeds": [0, 1],
        "evaluation": {"source": source, "max_tokens": 100, "lengths_tokens": [8, 32]},
        "output_dir": str(tmp_path / "out"),
    }


def test_variants_of_other_methods_leave_the_fields_of_alibi_behind(settings: dict[str, Any]) -> None:
    settings["experiment"]["model"].setdefault("overrides", {})["alibi_beta"] = 2.0
    runs = {run.variant: run for run in _runs(ComparisonConfig(**settings))}
    assert runs["alibi"].experiment.model.overrides == {"alibi_beta": 2.0}
    assert runs["table"].experiment.model.overrides == {"position_method": "learned"}
    settings["variants"]["table"]["alibi_beta"] = 2.0
    with pytest.raises(ValueError, match="alibi_beta would have no effect"):
        _runs(ComparisonConfig(**settings))


def test_a_variant_may_set_learning_rates(settings: dict[str, Any]) -> None:
    learned = {"alibi_trainable": "beta", "position_learning_rate": 30, "training.learning_rate": 0.004}
    settings |= {"variants": {"alibi": {}, "learned": learned}, "inference_overrides": {}, "seeds": [0]}
    plain, run = (run.experiment for run in _runs(ComparisonConfig(**settings)))
    assert (plain.position_learning_rate, plain.training.get("learning_rate")) == (1.0, None)
    assert (run.position_learning_rate, run.training["learning_rate"]) == (30.0, 0.004)
    assert run.model.overrides == {"alibi_trainable": "beta"}
    records = run_comparison(ComparisonConfig(**settings))
    (record,) = [r for r in records if r["kind"] == "training" and r["variant"] == "learned"]
    assert record["fields"] == learned
    assert (record["learning_rate"], record["position_learning_rate"]) == (0.004, 30.0)


def test_records_say_what_a_variant_inherits(settings: dict[str, Any]) -> None:
    overrides = {"alibi_beta": 8.0, "alibi_slope_kind": "uniform"}
    settings["experiment"]["model"]["overrides"] = overrides
    settings["experiment"]["position_learning_rate"] = 10.0
    learned = {"alibi_trainable": "beta", "position_learning_rate": 30}
    paper = {"alibi_beta": 1.0, "alibi_slope_kind": "geometric"}
    table = {"position_method": "learned", "position_learning_rate": 1.0}
    variants = {"tuned": {}, "paper": paper, "learned": learned, "table": table}
    settings |= {"variants": variants, "inference_overrides": {}, "reference": "paper", "seeds": [0]}
    settings["experiment"]["model"]["overrides"]["alibi_trainable"] = "beta"
    found = {run.variant: run.fields for run in _runs(ComparisonConfig(**settings))}
    rate = {"position_learning_rate": 10.0}
    assert found == {
        "tuned": {**overrides, **rate},
        "paper": {**paper, "alibi_trainable": "beta", **rate},
        "learned": {**overrides, **learned},
        "table": table,
    }


def test_a_variant_may_have_a_schedule_of_beta(settings: dict[str, Any]) -> None:
    annealed, steady = {"alibi_beta_schedule": {"start": 16, "end": 1}}, {"alibi_beta_schedule": None}
    others = {"alibi": {}, "annealed": annealed, "steady": steady, "none": {"position_method": "none"}}
    settings |= {"variants": others, "inference_overrides": {}, "seeds": [0]}
    runs = {run.variant: run.experiment.alibi_beta_schedule for run in _runs(ComparisonConfig(**settings))}
    assert runs == {"alibi": None, "annealed": BetaSchedule(start=16, end=1), "steady": None, "none": None}
    settings["experiment"]["alibi_beta_schedule"] = {"start": 4, "end": 1}
    runs = {run.variant: run.experiment.alibi_beta_schedule for run in _runs(ComparisonConfig(**settings))}
    assert (runs["alibi"], runs["steady"], runs["none"]) == (BetaSchedule(start=4, end=1), None, None)
    records = run_comparison(ComparisonConfig(**settings))
    inherited = {"alibi_beta_schedule": dataclasses.asdict(BetaSchedule(start=4, end=1))}
    fields = [r["fields"] for r in records if r["kind"] == "training"]
    assert fields == [inherited, *list(others.values())[1:]]
    (annealed_model,) = [r["model_dir"] for r in records if r["kind"] == "training" and r["variant"] == "annealed"]
    assert json.loads(Path(annealed_model, "config.json").read_text())["alibi_beta"] == 1.0


def test_every_variant_is_trained_and_read_with_every_seed(settings: dict[str, Any], tmp_path: Path) -> None:
    records = run_comparison(ComparisonConfig(**settings))
    for record in records:
        check_record(record)
    assert read_records(tmp_path / "out" / "comparison.jsonl") == json.loads(json.dumps(records))
    by_kind = {kind: [r for r in records if r["kind"] == kind] for kind in ("training", "extrapolation", "comparison")}
    assert [(r["variant"], r["seed"]) for r in by_kind["training"]] == [
        (variant, seed) for seed in (0, 1) for variant in settings["variants"]
    ]
    assert len(by_kind["extrapolation"]) == 2 * 4 * 2 * 2  # seeds, ways of reading in all, protocols, lengths
    assert len(by_kind["comparison"]) == 4 * 2 * 2
    assert records[0]["documents"] == ["words.txt"]
    flatter = [r for r in by_kind["comparison"] if r["reading"] == "flatter"]
    assert {r["name"] for r in flatter} == {"alibi, flatter"}
    assert all(r["reading_fields"] == {"alibi_scaling": {"type": "linear", "factor": 4}} for r in flatter)
    assert all(r["difference_nats"] != 0 for r in flatter)
    (beyond,) = {r["error"] for r in by_kind["comparison"] if r["variant"] == "table" and r["length_tokens"] == 32}
    assert "learned positions end" in beyond


def test_learned_slopes_are_recorded(settings: dict[str, Any]) -> None:
    settings |= {
        "variants": {"alibi": {}, "learned": {"alibi_trainable": "beta"}},
        "seeds": [0],
        "inference_overrides": {},
    }
    (learned,) = [r for r in run_comparison(ComparisonConfig(**settings)) if r["kind"] == "trained_beta"]
    check_record(learned)
    ((slope, _),), (beta,) = learned["slopes_by_layer"], learned["beta_by_layer"]
    assert slope == pytest.approx(beta * 2**-4) and beta != 1.0 and learned["variant"] == "learned"


def test_finished_runs_are_not_done_again(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings |= {"variants": {"alibi": {}}, "seeds": [0]}
    first = run_comparison(ComparisonConfig(**settings))
    monkeypatch.setattr("modeling_alibi_gpt.evaluation.grid.load_causal_lm", None)
    monkeypatch.setattr("modeling_alibi_gpt.training.trainer.make_trainer", None)
    again = run_comparison(ComparisonConfig(**settings))
    assert [r for r in again if r["kind"] == "extrapolation"] == [r for r in first if r["kind"] == "extrapolation"]


@pytest.mark.parametrize("change", ["a variant is missing", "a seed is added", "another worker reads it"])
def test_runs_on_different_texts_are_not_compared(
    settings: dict[str, Any], source: str, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, own = Path(source.removeprefix("text:")), tmp_path / "own.txt"
    own.write_text(held_out.read_text(encoding="utf-8"), encoding="utf-8")
    settings["experiment"]["data"]["source"] = f"text:{own}"
    variants = {"alibi": {}, "no positions": {"position_method": "none"}}
    settings |= {"variants": variants, "seeds": [0], "inference_overrides": {}}

    def edit() -> None:
        own.write_text(own.read_text(encoding="utf-8") + "\nAnother line of the text.", encoding="utf-8")

    run_comparison(ComparisonConfig(**settings))
    written = (tmp_path / "out" / "comparison.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "out" / "no-positions-seed0")
    settings["seeds"] = [0, 1] if change == "a seed is added" else [0]
    if change == "another worker reads it":
        shutil.rmtree(tmp_path / "out" / "alibi-seed0")
        run_jobs = comparison.run_jobs
        monkeypatch.setattr(comparison, "run_jobs", lambda jobs: (run_jobs(jobs[:1]), edit(), run_jobs(jobs[1:])))
        folder = "no-positions-seed0"
    else:
        edit()
        folder = "alibi-seed0"
    message = rf"/{folder} was trained on another text: got fingerprint \S+, expected \S+; restore the text, choose "
    with pytest.raises(ValueError, match=message):
        run_comparison(ComparisonConfig(**settings))
    assert (tmp_path / "out" / "comparison.jsonl").read_bytes() == written
    assert (tmp_path / "out" / "no-positions-seed0").exists() == (folder == "no-positions-seed0")


def test_runs_of_different_models_are_not_compared(settings: dict[str, Any], tmp_path: Path) -> None:
    model, file = settings["experiment"]["model"], tmp_path / "model.json"
    fields, model["config"] = model["config"], str(file)
    file.write_text(json.dumps(fields))
    settings |= {"variants": {"alibi": {}}, "seeds": [0], "inference_overrides": {}}
    run_comparison(ComparisonConfig(**settings))
    file.write_text(json.dumps(fields | {"alibi_beta": 8.0}))
    settings["seeds"] = [0, 1]
    message = r"/alibi-seed0 contains a run of another model: got alibi_beta 8\.0, expected 1\.0; restore the model"
    with pytest.raises(ValueError, match=message):
        run_comparison(ComparisonConfig(**settings))
    assert not (tmp_path / "out" / "alibi-seed1").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_runs_with_different_tokenizers_are_not_compared(
    settings: dict[str, Any], tmp_path: Path, shared: bool
) -> None:
    settings |= {"variants": {"alibi": {}}, "seeds": [0], "inference_overrides": {}}
    run_comparison(ComparisonConfig(**settings))
    [trained] = (tmp_path / "cache").glob("bpe-*")
    mine = shutil.copytree(trained, tmp_path / "mine")
    settings["experiment"]["data"]["tokenizer"] = str(mine)
    settings["output_dir"] = str(tmp_path / "named")
    settings["trainings_dir"] = str(tmp_path / "trainings") if shared else None
    run_comparison(ComparisonConfig(**settings))
    run_comparison(ComparisonConfig(**settings))
    backend = json.loads((mine / "tokenizer.json").read_text())
    backend["model"]["merges"] = backend["model"]["merges"][:-2]
    (mine / "tokenizer.json").write_text(json.dumps(backend))
    settings["seeds"] = [0, 1]
    with pytest.raises(ValueError, match=r"was trained with another tokenizer: got fingerprint \S+ of its tokens"):
        run_comparison(ComparisonConfig(**settings))
    for data in tmp_path.glob("*/*/data.json"):  # of an earlier version
        data.unlink()
    settings["seeds"] = [0]
    run_comparison(ComparisonConfig(**settings))


def test_a_finished_run_is_evaluated_on_another_text(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"variants": {"alibi": {}}, "seeds": [0], "inference_overrides": {}}
    run_comparison(ComparisonConfig(**settings))
    settings["evaluation"]["source"] = settings["experiment"]["data"]["validation_source"]
    records = run_comparison(ComparisonConfig(**settings))
    sources = {r["provenance"]["source"] for r in records if r["kind"] == "extrapolation"}
    assert sources == {settings["evaluation"]["source"]}


def test_a_run_that_another_worker_holds_is_left_to_it(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is taken up once the lock is free: here it comes free when this worker first waits."""
    settings |= {
        "variants": {"alibi": {}, "no positions": {"position_method": "none"}},
        "seeds": [0],
        "inference_overrides": {},
    }
    (tmp_path / "out").mkdir()
    other = FileLock(tmp_path / "out" / ".alibi-seed0.lock")
    other.acquire()
    found = []

    def wait(seconds: float) -> None:
        found.append([path.parent.name for path in (tmp_path / "out").glob("*-seed0/training.jsonl")])
        other.release()

    monkeypatch.setattr(runner.time, "sleep", wait)
    records = run_comparison(ComparisonConfig(**settings))
    assert found[0] == ["no-positions-seed0"]  # other threads of this process may sleep later
    assert {r["variant"] for r in records if r["kind"] == "training"} == {"alibi", "no positions"}


def _overrides(of_alibi: Any) -> dict[str, Any]:
    return {"inference_overrides": {"alibi": of_alibi}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "rope"}, "'rope' is not a variant"),
        ({"seeds": [1, 1]}, "seeds must be a list of one or more different values"),
        ({"inference_overrides": {"rope": {}}}, "'rope' is not a variant"),
        ({"variants": {"alibi": {"alibi_betta": 2}}}, "alibi_beta"),
        ({"variants": {"alibi": {"training.learning_rat": 1}}}, "did you mean 'training.learning_rate'"),
        ({"variants": {"alibi": {"training.seed": 1}}}, "variants.alibi: training.seed cannot be set"),
        ({"variants": {"alibi": {"position_learning_rate": "fast"}}}, "rate' must be a valid number"),
        ({"variants": {"alibi": {"position_learning_rate": 0}}}, "'position_learning_rate' must be above 0, got 0"),
        ({"variants": {"alibi": {"position_learning_rate": 30}}}, "position_learning_rate 30 would have no effect"),
        ({"variants": {"alibi": {"alibi_beta_schedule": 3}}}, "alibi_beta_schedule' must be a .*mapping"),
        ({"variants": {"alibi": {"alibi_beta_schedule": {"start": 3}}}}, "alibi.alibi_beta_schedule.end' is missing"),
        (_overrides({"x": {"alibi_scaling": {"type": "cubic"}}}), "alibi_scaling type"),
        (_overrides({"x": {"alibi_betta": 2}}), "unknown key 'model.overrides.alibi_betta'"),
        (
            {"inference_overrides": {"alibi": {"x": {"model_type": "gpt2"}}}},
            "unknown key 'model.overrides.model_type'",
        ),
        (_overrides({"x": 5}), "'inference_overrides.alibi.x' must be a mapping, got 5"),
        (_overrides([1]), "'inference_overrides.alibi' must be a mapping"),
        (_overrides({"as trained": {}}), "'as trained' is reserved"),
        (
            {"inference_overrides": {"alibi": {"x": {"hidden_size": 32}}}},
            "alibi.x needs other weights than the train",
        ),
        (
            {"inference_overrides": {"alibi": {"x": {"alibi_trainable": "beta"}}}},
            "alibi.x needs other weights",
        ),
        (
            {"variants": {"alibi": {"alibi_trainable": "beta"}}, **_overrides({"x": {"alibi_beta": 2.0}})},
            "inference_overrides.alibi.x.alibi_beta has no effect",
        ),
        ({"evaluation": {}}, "evaluation.source is missing"),
        ({"evaluation": {"source": "text:nowhere/*"}}, "no file matches 'nowhere/\\*'"),
        ({"evaluation": {"source": "web:x"}}, "unknown source 'web:x'"),
        ({"evaluation": {"source": "stdlib", "lengths": [8]}}, "evaluation.lengths"),
        ({"evaluation": {"source": "stdlib", "models": ["x"]}}, "evaluation.models cannot be set"),
        (
            {"evaluation": {"source": "stdlib", "plugins": ["x"]}},
            "evaluation.plugins cannot be set: name them in the exp",
        ),
        ({"experiment_overrides": ["precision=auto"]}, "a comparison needs one precision for all its trainings"),
        ({"cooldown_share": 0.5}, "cooldown_share would have no effect without budgets_steps"),
        ({"evaluation": {"source": "stdlib", "split": "dev"}}, "split must be one of train, .*, got 'dev'"),
        (
            {"evaluation": {"source": "stdlib", "dtype": "int8"}},
            "'evaluation.dtype' must be .* got 'int8'",
        ),
        ({"evaluation": {"source": "stdlib", "protocols": ["once"]}}, "protocol must be one of .*, got 'once'"),
        ({"evaluation": {"source": "stdlib", "lengths_tokens": [0]}}, "length_tokens must be at least 1, got 0"),
        (
            {"evaluation": {"source": "stdlib", "attn_implementation": "x"}},
            "attention back end 'x' would .* use one of eager",
        ),
        (
            {"evaluation": {"source": "stdlib", "attn_implementation": "flash_attention_2"}},
            "evaluation.attn_implementation 'flash_attention_2' needs",
        ),
        ({"variants": {"alibi": {}, "": {}}}, "printable names .*, got ''"),
        ({"variants": {"alibi": {}, "alibi ": {}}}, "printable names .*, got 'alibi '"),
        ({"variants": {"alibi": {}, "a  b": {}}}, "printable names .*, got 'a  b'"),
        ({"variants": {"alibi": {}, "a\x00b": {}}}, "printable names"),
        ({"variants": {"alibi": {}, "x/y": {}, "x y": {}}}, "variants 'x/y' and 'x y' would share one folder"),
        ({"variants": {"alibi": {}, "ALiBi": {}}}, "variants 'alibi' and 'ALiBi' would share one folder"),
        ({"variants": {"alibi": {}, "x" * 101: {}}}, "names of at most 100 characters"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_comparison(ComparisonConfig(**(settings | change)))
    assert not (tmp_path / "out").exists()


def test_a_text_too_short_for_the_evaluation_is_refused_before_anything_is_trained(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    evaluation = settings["evaluation"] | {"lengths_tokens": [64, 10**7]}
    with pytest.raises(ValueError, match="a window of 10000000 needs 10000001"):
        run_comparison(ComparisonConfig(**(settings | {"evaluation": evaluation})))
    assert not (tmp_path / "out").exists()


def test_text_that_the_variants_train_on_is_not_their_held_out_text(settings: dict[str, Any], tmp_path: Path) -> None:
    del settings["experiment"]["data"]["validation_source"]
    settings["evaluation"] |= {"split": "validation", "validation_fraction": 0.2}
    with pytest.raises(
        ValueError, match="contains text that alibi was trained on: .* held out validation_fraction 0.1"
    ):
        run_comparison(ComparisonConfig(**settings))
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_outside_the_folder_of_the_comparison(settings: dict[str, Any], tmp_path: Path) -> None:
    names = ["../../../esc", "x/y", "/abs", ".hidden"]
    settings |= {"variants": dict.fromkeys(names, {}), "seeds": [0], "inference_overrides": {}, "reference": "x/y"}
    settings["output_dir"] = str(tmp_path / "deep" / "er" / "out")
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    run_comparison(ComparisonConfig(**settings))
    written = {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - before
    out = tmp_path / "deep" / "er" / "out"
    assert all(path in out.parents or path == out or out in path.parents for path in written)
    runs = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert runs == ["--..-..-esc-seed0", "-abs-seed0", "-hidden-seed0", "x-y-seed0"]


def test_differences_are_taken_seed_by_seed() -> None:
    nats = {("alibi", 0): 3.0, ("alibi", 1): 3.5, ("rope", 0): 3.25, ("rope", 1): 3.25}
    rows = [
        {
            **{"kind": "extrapolation", "comparison": "c", "variant": variant, "name": variant, "seed": seed},
            **{"reading": "as trained", "fields": {}, "overrides": {}, "position_method": variant, "error": None},
            **{"protocol": "sliding", "length_tokens": 8, "stride_tokens": 2, "train_context_length": 8},
            **{"nats_per_token": value, "provenance": {"data_fingerprint": "0"}},
        }
        for (variant, seed), value in nats.items()
    ]
    alibi, rope = comparison_records(rows, reference="alibi")
    assert alibi["difference_nats_by_seed"] == [0.0, 0.0] and alibi["nats_per_token"] == 3.25
    assert rope["difference_nats_by_seed"] == [0.25, -0.25] and rope["difference_nats"] == 0.0
    assert rope["difference_nats_sd"] == statistics.stdev([0.25, -0.25]) and rope["nats_per_token_sd"] == 0.0
    failed = [row | {"nats_per_token": None, "error": "too long"} if row["seed"] else row for row in rows[:2]]
    alibi, rope = comparison_records([*failed, *rows[2:]], reference="alibi")
    assert alibi["error"] == "too long" and rope["error"] is None and rope["nats_per_token"] == 3.25
    assert rope["difference_nats_by_seed"] == [] and rope["difference_nats"] is None
    check_record(rope)


def test_overrides_do_not_change_the_experiment_of_the_caller(settings: dict[str, Any]) -> None:
    experiment = settings["experiment"]
    assert load_experiment(experiment, ["training.max_steps=7"]).training["max_steps"] == 7
    assert experiment["training"]["max_steps"] == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "comparison").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_comparisons_of_the_project_can_be_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ComparisonConfig, str(path))
    runs = comparison._runs(config)
    assert len(runs) == len(config.variants) * len(config.seeds) * len(config.budgets_steps or [None])
    base = load_config(ExperimentConfig, config.experiment)
    assert model_config(base.model).model_type == "alibi_gpt"


def test_the_script_prints_the_grid(settings: dict[str, Any], tmp_path: Path, capsys, caplog) -> None:
    spec = importlib.util.spec_from_file_location("compare_script", ROOT / "scripts" / "compare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(settings | {"variants": {"alibi": {}}, "seeds": [0]}), encoding="utf-8")
    assert script.main(["--config", str(path), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("alibi, flatter") for line in lines)
    assert json.loads(lines[-1])["records"] == str(tmp_path / "out" / "comparison.jsonl")
    label = "[1/1 alibi seed 0]"
    begins, ends = [message for message in caplog.messages if message.startswith("[")]
    assert begins == f"{label} begins" and ends.startswith(f"{label} validation perplexity ")
    assert script.main(["--config", str(path), "--set", "seeds=[]"]) == 2
