"""The README: its Python runs as it stands, its commands are ones the scripts take, its files exist."""

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from alibi_gpt_cli.main import app, repeated_options
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.experiments.sweep_config import SweepConfig
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.comparison_sections import claims_section
from modeling_alibi_gpt.report.frames import MILESTONE_PROTOCOL, frame_of, frames, milestone_runs
from modeling_alibi_gpt.report.page import markdown_table
from modeling_alibi_gpt.report.report import ReportConfig
from modeling_alibi_gpt.report.speed_tables import (
    attention_speed_table,
    conversion_speed_table,
    decode_speed_table,
    gpu_attention_table,
    gpu_model_table,
    model_speed_table,
)
from modeling_alibi_gpt.report.tables import Table, beta_table, extrapolation_table
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import Record, read_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]
COMMAND_OF_SCRIPT = {"sweep_beta": "sweep", "export_to_hub": "export"}
SCRIPT_COMMANDS = [command for command in COMMANDS if "scripts/" in command]
PROSE = re.sub(r"```.*?```|^\|.*?$", "", README, flags=re.DOTALL | re.MULTILINE)
TEXT = "\n".join(f"def function_{number}(x):\n    return x + {number}\n" for number in range(200))


def test_python_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that has a tiny model where the demo leaves its own."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    torch.manual_seed(0)
    config = AlibiGPTConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=3)
    AlibiGPTForCausalLM(config).save_pretrained("runs/demo/alibi")
    train_tokenizer(load_documents("text:text.txt", "all"), 300).save_pretrained("runs/demo/alibi")
    assert len(PYTHON_BLOCKS) >= 4
    namespace: dict[str, object] = {}
    for block in PYTHON_BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    del POSITION_METHODS["mine"]  # the example of a plugin


@pytest.mark.parametrize("command", SCRIPT_COMMANDS)
def test_commands_are_ones_the_scripts_take(command: str) -> None:
    words = shlex.split(command)
    (path,) = [word for word in words if word.startswith("scripts/")]
    assert (ROOT / path).is_file()
    name = COMMAND_OF_SCRIPT.get(Path(path).stem, Path(path).stem)
    _, *arguments = repeated_options([name, *words[words.index(path) + 1 :]])
    options = typer.main.get_command(app).commands[name].make_context(name, arguments).params
    if options["config"]:
        assert (ROOT / options["config"]).is_file()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert targets >= {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_make_check_is_what_ci_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (needed,) = re.findall(r"^check: (.*) ##", makefile, flags=re.MULTILINE)
    assert needed.split() == re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)


def test_the_dashboard_is_pointed_at_the_study_of_the_sweep_beside_it() -> None:
    (path,) = set(re.findall(r"scripts/sweep_beta.py --config (\S+) --set storage", README))
    config = load_config(SweepConfig, str(ROOT / path))
    assert f"`optuna-dashboard {config.storage_url}`" in README


def test_what_a_command_needs_beyond_the_package_is_said_and_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"-e '\.\[(\w+)\]'", README)) >= {"convert", "dashboard", "integrations"}
    assert set(re.findall(r"(?:-e '\.|'alibi-gpt)\[(\w+)\]'", README)) <= extras.keys()


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_tables_are_those_of_the_records() -> None:
    """A figure in the README comes from a file under results/, letter by letter."""
    (path,) = (ROOT / "results").glob("demo_cpu2_*.jsonl")
    assert f"results/{path.name}" in README
    by_kind = group_by(read_records(path), lambda record: record["kind"])
    assert markdown_table(extrapolation_table(by_kind["extrapolation"])) in README
    for trials in group_by(by_kind["beta_trial"], lambda record: record["mode"]).values():
        assert markdown_table(beta_table(trials)) in README


def test_the_demo_gives_the_same_numbers_again() -> None:
    """A second run to the last bit, one thread in place of two to the digits that the README says."""
    first, records = read_results("demo"), read_results("demo_again")
    again, with_one_thread = (
        [record for record in records if ("num_threads" in record) is one] for one in (False, True)
    )
    unequal = ("provenance", "train_seconds")
    for record, other in zip(first, again, strict=True):
        assert all(record[field] == other[field] for field in record if field not in unequal)
    trained = {record["name"]: record["validation_perplexity"] for record in first if record["kind"] == "training"}
    assert [record["name"] for record in with_one_thread] == list(trained) == ["alibi", "rope"]
    worst = max(abs(record["validation_perplexity"] / trained[record["name"]] - 1) for record in with_one_thread)
    assert_prose_has(f"{worst:.4%}")


def test_the_demo_is_what_the_readme_says() -> None:
    by_kind = group_by(read_results("demo"), lambda record: record["kind"])
    assert_prose_has(*(f"{record['validation_perplexity']:.2f}" for record in by_kind["training"]))
    assert all(record["num_train_tokens"] == 589_824 and not record["bf16"] for record in by_kind["training"])
    ends = {
        (record["name"], record["length_tokens"]): record["perplexity"]
        for record in by_kind["extrapolation"]
        if record["protocol"] == "sliding"
    }
    assert abs(ends["alibi", 2048] / ends["alibi", 128] - 1) < 0.01
    assert round(ends["rope", 2048] / ends["rope", 128], 1) == 1.5
    install, demo = (record["seconds"] / 60 for record in read_results("demo_seconds"))
    assert_prose_has(f"{demo:.1f}", f"{install:.1f}")
    assert install + demo < 10


@pytest.mark.parametrize("name", ["demo", "demo_short"])
def test_the_demo_has_one_precision_on_every_machine(name: str) -> None:
    config = load_config(ExperimentConfig, str(ROOT / "configs" / "experiment" / f"{name}.yaml"))
    assert config.precision == "float32"


def assert_prose_has(*numbers: str) -> None:
    """Each number stands in the text around tables and code, and not as a part of another number."""
    for number in numbers:
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d%]|[.,]\d)", PROSE), number


def group_by(records: list[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Records with equal keys together, in the order of their first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def read_results(kind: str) -> list[Record]:
    """The records of a file under results/ to which the README links."""
    (path,) = (ROOT / "results").glob(f"{kind}_cpu2_*.jsonl")
    assert f"(results/{path.name})" in README
    return read_records(path)


def test_speeds_are_those_of_the_records() -> None:
    by_kind = group_by(read_results("speed"), lambda record: record["kind"])
    for kind, table in (
        ("attention_speed", attention_speed_table),
        ("model_speed", model_speed_table),
        ("decode_speed", decode_speed_table),
    ):
        assert markdown_table(table(by_kind[kind])) in README


def test_gains_of_conversions_are_those_of_the_records() -> None:
    assert markdown_table(conversion_speed_table(read_results("speed_converted"))) in README


def test_llama_cpp_agrees_as_the_records_say() -> None:
    records = read_results("gguf")
    assert all(record["greedy_tokens_equal"] == record["num_new_tokens"] for record in records)
    assert {record["length_tokens"] for record in records} >= {1, 700}
    worst = max(record["max_log_prob_difference_nats"] for record in records)
    assert_prose_has(f"{worst:.4f}")


def test_a_retrofit_is_as_good_as_its_record_says() -> None:
    start, (first, *_) = milestone_runs(frame_of(records := read_results("retrofit")))
    assert (f"{start['perplexity']:.2f}", first["reached"]) == ("63.24", 409_600)
    assert_prose_has("409,600")
    assert records[0]["num_train_tokens"] == 5 * 409_600
    ends = [record for record in records if (record["name"], record["step"]) == ("GPT-2 with ALiBi", 400)]
    assert_prose_has(*(f"{record['perplexity']:.2f}" for record in ends))
    (control,) = [
        r for r in records if (r["name"], r["step"], r["protocol"]) == ("GPT-2 as it was", 400, MILESTONE_PROTOCOL)
    ]
    assert_prose_has(f"{control['perplexity']:.2f}")


def test_claims_are_judged_as_the_records_say() -> None:
    config = load_config(ReportConfig, str(ROOT / "configs" / "report" / "results.yaml"))
    records = [record for path in config.records for record in read_records(ROOT / path) if "comparison" in record]
    by_kind = frames(records)
    grids = {str(name): Comparison(frame) for name, frame in by_kind["comparison"].groupby("comparison", sort=False)}
    (section,) = claims_section(list(grids.values()), by_kind)
    verdicts = Table(["said", "found"], [row[:2] for row in section.tables[0].rows], num_text_columns=2)
    assert markdown_table(verdicts) in README
    short, long = (grid for name, grid in grids.items() if name.startswith("beta on Gutenberg"))
    for grid, betas in ((short, (8, 16, 32, 64)), (long, (16,))):
        curve = grid.curve("geometric", 128)
        assert curve.choice.level == betas
        assert_prose_has(f"{-curve.between(curve.choice.taken, 1.0).mean:.2f}")


def test_figures_from_a_gpu_are_those_of_the_records() -> None:
    (path,) = (ROOT / "results").glob("gpu_h200_*.jsonl")
    assert f"(results/{path.name})" in README
    by_kind = group_by(read_records(path), lambda record: record["kind"])
    assert markdown_table(gpu_model_table(by_kind["model_speed"])) in README
    assert markdown_table(gpu_attention_table(by_kind["attention_speed"])) in README
    (tests,) = by_kind["gpu_tests"]
    assert tests["failed"] == 0 and len(tests["unfinished"]) == 2
    assert_prose_has(str(tests["passed"]))
    for name in ("plain", "flex"):
        (record,) = [
            record
            for record in by_kind["attention_speed"]
            if (record["name"], record["mode"]) == (name, "forward")
            and (record["head_dim"], record["length_tokens"]) == (128, 65_536)
        ]
        # Two matrix products, of which causal attention needs half.
        flops = 4 * record["length_tokens"] ** 2 * record["head_dim"] * record["num_heads"] / 2
        assert_prose_has(f"{flops / record['seconds'] / 1e12:.0f}")


def test_windows_of_the_trained_model_are_those_of_the_record() -> None:
    (record,) = read_results("margins")
    margins = [value for layer in record["margins_nats_by_layer"] for value in layer]
    windows = [value for layer in record["windows_tokens_by_layer"] for value in layer]
    assert_prose_has(f"{min(margins):.1f}", f"{max(margins):.1f}", f"{min(windows):,}", f"{max(windows):,}")


def test_counts_of_transformers_tests_are_those_of_the_records() -> None:
    records = read_results("conformance")
    rows = [[r["suite"], r["model"], *(str(r[count]) for count in ("passed", "failed", "skipped"))] for r in records]
    table = Table(["tests of transformers", "model", "passed", "failed", "skipped"], rows, num_text_columns=2)
    assert markdown_table(table) in README
    for suite in group_by(records, lambda record: record["suite"]).values():
        skipped = {record["model"]: set().union(*record["skipped_by_reason"].values()) for record in suite}
        assert {name for name in skipped["alibi_gpt"] - skipped["llama"] if "rope_scaling" not in name} == set()


def test_errors_of_number_formats_are_those_of_the_records() -> None:
    rows = []
    for dtype, records in group_by(read_results("precision"), lambda record: record["dtype"]).items():
        assert all(record["bias_error_ulps"] <= 0.501 for record in records)
        more_than_twice = {
            record["length_tokens"]
            for record in records
            if record["compiled_max_error"] > 2 * record["plain_max_error"] + 1e-6
        }
        assert more_than_twice == ({8192, 32768} if dtype == "float16" else set())
        for path in ("folded", "strips", "augmented", "compiled", "banded", "absolute"):
            cells = []
            for figure in ("max_error", "relative_rms_error"):
                worst = max(record[f"{path}_{figure}"] for record in records)
                times = max(record[f"{path}_{figure}"] / record[f"plain_{figure}"] for record in records)
                cells += [f"{worst:.1e}", f"{times:.2f}"]
            rows.append([dtype, path, *cells])
    header = ["", "way", "largest error", "times plain", "relative error", "times plain"]
    assert markdown_table(Table(header, rows, num_text_columns=2)) in README


def test_differences_of_converted_models_are_those_of_the_records() -> None:
    rows = []
    key = ("name", "model", "dtype", "reference")
    figures = ("max_logit_difference", "kl_nats_per_token")
    for what, records in group_by(read_results("conversion"), lambda record: tuple(map(record.get, key))).items():
        assert [record["length_tokens"] for record in records] == [512, 2048]
        assert all(record["reference_dtype"] == "float64" and 0.98 < record["logit_std"] < 1.02 for record in records)
        rows.append([*what, *(f"{record[figure]:.1e}" for figure in figures for record in records)])
    header = ["", "model", "dtype", "against, in float64", "largest, 512", "2,048 tokens", "KL, 512", "2,048 tokens"]
    assert markdown_table(Table(header, rows, num_text_columns=4)) in README
