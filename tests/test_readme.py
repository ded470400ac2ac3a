"""README and docs: their Python runs, their commands and links exist, their numbers are those of the records."""

import itertools
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
from modeling_alibi_gpt.report.screen import is_screen
from modeling_alibi_gpt.report.speed_tables import (
    attention_speed_table,
    conversion_speed_table,
    decode_speed_table,
    model_speed_table,
)
from modeling_alibi_gpt.report.tables import Table, beta_table, extrapolation_table
from modeling_alibi_gpt.runtime.config import load_config
from modeling_alibi_gpt.runtime.records import Record, read_records
from modeling_alibi_gpt.training.experiment import ExperimentConfig
from modeling_alibi_gpt.training.preflight import check_experiment


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
DOCUMENTATION = "\n".join(PAGES.values())


def blocks(language: str) -> dict[str, list[str]]:
    """Code blocks of a language, by the page that has them."""
    found = {name: re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL) for name, text in PAGES.items()}
    return {name: texts for name, texts in found.items() if texts}


# Runs in two processes under torchrun, and fails there on purpose.
REPRODUCTION = "docs/fsdp2-tied-embeddings.md"
PYTHON_BLOCKS = blocks("python")
LINES = [line for texts in blocks("bash").values() for text in texts for line in text.splitlines() if line]
COMMANDS = [command.strip() for line in LINES for command in line.partition("  #")[0].split("&&")]
# Settings that a page tells its reader to save, by their file names.
SETTINGS = dict(re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", DOCUMENTATION, flags=re.DOTALL))
COMMAND_OF_SCRIPT = {"sweep_beta": "sweep", "export_to_hub": "export"}
PROSE = " ".join(re.sub(r"```.*?```|^\|.*?$", "", DOCUMENTATION, flags=re.DOTALL | re.MULTILINE).split())
TEXT = "\n".join(f"def function_{number}(x):\n    return x + {number}\n" for number in range(200))


@pytest.mark.parametrize("page", sorted(PYTHON_BLOCKS.keys() - {REPRODUCTION}))
def test_python_blocks_of_a_page_run_one_after_another(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that has a tiny model where the demo leaves its own."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    torch.manual_seed(0)
    config = AlibiGPTConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=3)
    AlibiGPTForCausalLM(config).save_pretrained("runs/demo/alibi")
    train_tokenizer(load_documents("text:text.txt", "all"), 300).save_pretrained("runs/demo/alibi")
    namespace: dict[str, object] = {}
    for block in PYTHON_BLOCKS[page]:
        exec(compile(block, page, "exec"), namespace)
    if page == "docs/extension.md":
        del POSITION_METHODS["mine"]


def test_pages_with_python_are_these() -> None:
    """A page that lost its fence would lose its test."""
    names = ("README", "docs/quickstart", "docs/training", "docs/beta", "docs/performance", "docs/extension")
    assert PYTHON_BLOCKS.keys() == {*(f"{name}.md" for name in names), REPRODUCTION}


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands_are_ones_that_exist(command: str) -> None:
    words = shlex.split(command)
    if words[:2] == ["pip", "install"]:
        return  # extras have a test of their own
    if words == ["python", "scripts/download_gutenberg.py"]:
        assert (ROOT / words[1]).is_file()
        return  # no command of alibi-gpt
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in words[1:])
        return
    name, arguments = command_line(words)
    _, *arguments = repeated_options([name, *arguments])
    options = typer.main.get_command(app).commands[name].make_context(name, arguments).params
    if config := options.get("config"):
        assert config in SETTINGS or (ROOT / config).is_file()


def command_line(words: list[str]) -> tuple[str, list[str]]:
    """A command of `alibi-gpt` and its arguments, by itself or through a script under a launcher."""
    if words[0] == "alibi-gpt":
        return words[1], words[2:]
    (script,) = [word for word in words if word.startswith("scripts/")]
    assert (ROOT / script).is_file()
    return COMMAND_OF_SCRIPT.get(Path(script).stem, Path(script).stem), words[words.index(script) + 1 :]


def test_commands_named_in_the_text_exist() -> None:
    named = set(re.findall(r"`alibi-gpt ([a-z]+)", DOCUMENTATION))
    assert named >= {"init", "sweep", "margins", "screen"}
    assert named <= typer.main.get_command(app).commands.keys()


def test_settings_to_be_saved_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for name, text in SETTINGS.items():
        Path(name).write_text(text, encoding="utf-8")
    sweep = load_config(SweepConfig, "books_sweep.yaml")
    check_experiment(load_config(ExperimentConfig, "books.yaml"))
    trial = load_config(ExperimentConfig, sweep.experiment, sweep.experiment_overrides)
    assert check_experiment(trial).max_steps == 256
    assert SETTINGS.keys() == {"books.yaml", "books_sweep.yaml"}


def test_the_readme_is_one_screen_and_names_its_two_commands() -> None:
    assert len(README.encode()) <= 8192
    targets = {line.split()[1] for line in README.splitlines() if line.startswith("make ")}
    assert targets == {"demo", "test"}


def test_the_table_of_attention_files_lists_all_of_them() -> None:
    listed = re.findall(r"^\| `(attention\w*\.py)` \|", PAGES["docs/architecture.md"], flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "modeling_alibi_gpt").glob("attention*.py"))


def test_make_check_is_what_ci_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (needed,) = re.findall(r"^check: (.*) ##", makefile, flags=re.MULTILINE)
    assert needed.split() == re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)


def test_the_dashboard_is_pointed_at_the_study_of_the_sweep_beside_it() -> None:
    (path,) = set(re.findall(r"alibi-gpt sweep --config (\S+) --set storage", DOCUMENTATION))
    config = load_config(SweepConfig, str(ROOT / path))
    assert f"`optuna-dashboard {config.storage_url}`" in DOCUMENTATION


def test_what_a_command_needs_beyond_the_package_is_said_and_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"'(?:\.|alibi-gpt)\[(\w+)\]'", DOCUMENTATION))
    assert {"all", "convert", "dashboard", "integrations", "serve"} <= named <= extras.keys()


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_and_headings_exist(page: str) -> None:
    for link, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", PAGES[page]):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, heading


@pytest.mark.parametrize(
    ("row", "figure"),
    [
        ("| sdpa (from 512 tokens on) | forward | float32 | AMD EPYC, 2 threads | 12 x 64 |", "0.12"),
        ("| sdpa | 64 | forward and backward |", "0.39"),
        ("| alibi_gpt sdpa | 124 M | 16,384 |", "1.86"),
        ("| alibi_gpt sdpa | 124 M | 2,048 |", "1.27"),
        ("| bloom as AlibiGPT, sdpa | forward |", "0.37"),
        ("| bloom as AlibiGPT, sdpa | forward |", "230"),
        ("| bloom | forward |", "3,296"),
        ("| bfloat16 | compiled |", "1.5e-02"),
        ("| bfloat16 | absolute |", "3.7e+00"),
    ],
)
def test_figures_of_the_readme_are_those_of_the_tables(row: str, figure: str) -> None:
    """Of the rows with this beginning, whose tables other tests hold to the records."""
    rows = [line for line in DOCUMENTATION.splitlines() if line.startswith(row)]
    assert any(f"| {figure} |" in line for line in rows)
    assert figure in README


def test_tables_are_those_of_the_records() -> None:
    """A figure on a page comes from a file under results/, letter by letter."""
    by_kind = group_by(read_results("demo"), lambda record: record["kind"])
    assert markdown_table(extrapolation_table(by_kind["extrapolation"])) in DOCUMENTATION
    for trials in group_by(by_kind["beta_trial"], lambda record: record["mode"]).values():
        assert markdown_table(beta_table(trials)) in DOCUMENTATION


def test_the_demo_gives_the_same_numbers_again() -> None:
    """A second run to the last bit, one thread in place of two to the digits that the quickstart says."""
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


def test_the_demo_is_what_pages_say() -> None:
    by_kind = group_by(read_results("demo"), lambda record: record["kind"])
    assert_prose_has(*(f"{record['validation_perplexity']:.2f}" for record in by_kind["training"]))
    assert all(record["num_train_tokens"] == 589_824 and not record["bf16"] for record in by_kind["training"])
    ends = {
        (record["name"], record["length_tokens"]): record["perplexity"]
        for record in by_kind["extrapolation"]
        if record["protocol"] == "sliding"
    }
    for name, length in itertools.product(("alibi", "rope"), (128, 2048)):
        assert f"{ends[name, length]:.2f}" in README
    assert abs(ends["alibi", 2048] / ends["alibi", 128] - 1) < 0.01
    assert round(ends["rope", 2048] / ends["rope", 128], 1) == 1.5
    install, demo = (record["seconds"] / 60 for record in read_results("demo_seconds"))
    assert_prose_has(
        f"`make demo` took {demo:.1f} minutes",
        f"It took {demo:.1f} minutes on two cores of an AMD EPYC, after {install:.1f} minutes of installation",
        f"as this tutorial, plus a second model, and took {demo:.1f} minutes",
    )
    assert install + demo < 10


@pytest.mark.parametrize("name", ["demo", "demo_short"])
def test_the_demo_has_one_precision_on_every_machine(name: str) -> None:
    config = load_config(ExperimentConfig, str(ROOT / "configs" / "experiment" / f"{name}.yaml"))
    assert config.precision == "float32"


def assert_prose_has(*texts: str) -> None:
    """Each text stands once around tables and code, and begins and ends with no part of another number.

    A number that a page has more than once needs the words around it, or one place would answer for the other.
    """
    for text in texts:
        places = re.findall(rf"(?<![\d.,]){re.escape(text)}(?![\d%]|[.,]\d|e[-+]?\d)", PROSE)
        assert len(places) == 1, f"expected once in the text, got {len(places)} times: {text!r}"


def group_by(records: list[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Records with equal keys together, in the order of their first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def read_results(kind: str) -> list[Record]:
    """The records of a file under results/ to which a page links."""
    (path,) = (ROOT / "results").glob(f"{kind}_cpu2_*.jsonl")
    assert_links_to(path)
    return read_records(path)


def assert_links_to(path: Path) -> None:
    assert f"/{path.name})" in DOCUMENTATION, path


def test_speeds_are_those_of_the_records() -> None:
    by_kind = group_by(read_results("speed"), lambda record: record["kind"])
    for kind, table in (
        ("attention_speed", attention_speed_table),
        ("model_speed", model_speed_table),
        ("decode_speed", decode_speed_table),
    ):
        assert markdown_table(table(by_kind[kind])) in DOCUMENTATION
    for name in ("training_loops", "compile"):
        assert markdown_table(model_speed_table(read_results(name))) in DOCUMENTATION


def test_gains_of_conversions_are_those_of_the_records() -> None:
    assert markdown_table(conversion_speed_table(read_results("speed_converted"))) in DOCUMENTATION


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
    (paragraph,) = [text for text in DOCUMENTATION.split("\n\n") if f"{control['perplexity']:.2f}" in text]
    assert paragraph.count(f"{control['num_train_tokens']:,} tokens") == 2  # of both models


def test_claims_are_judged_as_the_records_say() -> None:
    config = load_config(ReportConfig, str(ROOT / "configs" / "report" / "tables.yaml"))
    records = [record for path in config.records for record in read_records(ROOT / path) if "comparison" in record]
    by_kind = frames(records)
    # Budgets have sections of their own.
    read = by_kind["comparison"][by_kind["comparison"]["budget_tokens"].isna()]
    grids = {str(name): Comparison(frame) for name, frame in read.groupby("comparison", sort=False)}
    (section,) = claims_section([grid for grid in grids.values() if not is_screen(grid)], by_kind)
    verdicts = Table(["said", "found"], [row[:2] for row in section.tables[0].rows], num_text_columns=2)
    assert markdown_table(verdicts) in DOCUMENTATION
    short, long = (grid for name, grid in grids.items() if name.startswith("beta on Gutenberg"))
    for grid, betas in ((short, (8, 16, 32, 64)), (long, (16,))):
        curve = grid.curve("geometric", 128)
        assert curve.choice.level == betas
        assert_prose_has(f"{-curve.between(curve.choice.taken, 1.0).mean:.2f}")


def test_windows_of_the_trained_model_are_those_of_the_record() -> None:
    (record,) = read_results("margins")
    margins = [value for layer in record["margins_nats_by_layer"] for value in layer]
    windows = [value for layer in record["windows_tokens_by_layer"] for value in layer]
    nats, tokens = f"{min(margins):.1f} to {max(margins):.1f} nats", f"{min(windows):,} to {max(windows):,} tokens"
    heads = len(margins)
    assert_prose_has(
        f"margins of its {heads} heads range from {nats}, and the windows from {tokens}",
        f"margins are {nats} over {heads} heads, and windows {tokens}",
    )


def test_counts_of_transformers_tests_are_those_of_the_records() -> None:
    records = read_results("conformance")
    rows = [[r["suite"], r["model"], *(str(r[count]) for count in ("passed", "failed", "skipped"))] for r in records]
    table = Table(["tests of transformers", "model", "passed", "failed", "skipped"], rows, num_text_columns=2)
    assert markdown_table(table) in DOCUMENTATION
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
    assert markdown_table(Table(header, rows, num_text_columns=2)) in DOCUMENTATION


def test_differences_of_converted_models_are_those_of_the_records() -> None:
    rows = []
    key = ("name", "model", "dtype", "reference")
    figures = ("max_logit_difference", "kl_nats_per_token")
    for what, records in group_by(read_results("conversion"), lambda record: tuple(map(record.get, key))).items():
        assert [record["length_tokens"] for record in records] == [512, 2048]
        assert all(record["reference_dtype"] == "float64" and 0.98 < record["logit_std"] < 1.02 for record in records)
        rows.append([*what, *(f"{record[figure]:.1e}" for figure in figures for record in records)])
    header = ["", "model", "dtype", "against, in float64", "largest, 512", "2,048 tokens", "KL, 512", "2,048 tokens"]
    assert markdown_table(Table(header, rows, num_text_columns=4)) in DOCUMENTATION


def test_costs_of_data_are_those_of_the_records() -> None:
    records = read_results("data")
    by_step = group_by(
        [record for record in records if record.get("max_train_tokens") is None], lambda record: record["step"]
    )
    rates = {record["contestant"]: record["megabytes_per_cpu_second"] for record in by_step["encode"]}
    assert_prose_has(
        f"take 2.3 s to encode, {rates['alibi_gpt']:.1f} MB per second",
        f"library alone encodes {rates['tokenizers']:.1f} MB per second",
        f"which this package used before, {rates['transformers']:.1f} (CPU seconds",
        f"At {rates['alibi_gpt']:.1f} MB per second, 100 GB take",
    )
    small, large = by_step["prepare"]
    assert f"| 11 MB | {small['cpu_seconds'][0]:.1f} s | {small['disk_bytes'] / 1e6:.0f} MB |" in DOCUMENTATION
    assert f"| {peak(small)} | measured |" in DOCUMENTATION
    seconds, disk_gigabytes, gigabytes = large["cpu_seconds"][0], large["disk_bytes"] / 1e9, large["num_bytes"] / 1e9
    measured = f"| {gigabytes:.2f} GB | {seconds / 60:.1f} min | {disk_gigabytes:.2f} GB | {peak(large)} | measured |"
    assert measured in DOCUMENTATION
    hours, disk = f"{seconds / gigabytes / 36:.1f} h", f"{disk_gigabytes / gigabytes * 100:.0f} GB"
    assert f"| 100 GB | {hours} | {disk} | {peak(large)} | computed from {gigabytes:.2f} GB |" in DOCUMENTATION
    for record in by_step["train a BPE and prepare"]:
        cost = f"{record['cpu_seconds'][0]:.2g} s | {record['disk_bytes'] / 1e6:.0f} MB | {peak(record)} | measured |"
        assert f"| {record['num_bytes'] / 1e6:.0f} MB, `tokenizer: train` | {cost}" in DOCUMENTATION
    of_first_tokens = [record for record in records if record.get("max_train_tokens") == 1_000_000]
    for whole, part in zip(of_first_tokens[::2], of_first_tokens[1::2], strict=True):
        assert whole["contestant"] == "reading all" and whole["file_format"] == part["file_format"]
        seconds = " | ".join(f"{record['cpu_seconds'][0]:.1f} s" for record in (whole, part))
        disks = " | ".join(f"{record['disk_bytes'] / 1e6:,.0f} MB" for record in (whole, part))
        anonymous = " | ".join(f"{record['peak_anonymous_bytes'] / 1e9:.2f} GB" for record in (whole, part))
        memory = f"{peak(whole)} | {peak(part)} | {anonymous}"
        row = f"| `{whole['file_format']}:` | {seconds} | {memory} | {disks} |"
        assert row in DOCUMENTATION


def test_the_cost_of_a_length_warmup_is_that_of_the_records() -> None:
    losses = {record["name"]: record["validation_nats_per_token"] for record in read_results("length_warmup")}
    costs = [losses[f"gutenberg_length_warmup-{seed}"] - losses[f"gutenberg-{seed}"] for seed in range(3)]
    assert_prose_has(f"{min(costs):.3f} to {max(costs):.3f} nats higher")


def test_costs_of_reports_are_those_of_the_records() -> None:
    for record in read_results("reports"):
        assert_prose_has(
            f"{record['cpu_seconds']:.0f} s", peak(record), f"{record['memory_before_bytes'] / 1e9:.2f} GB"
        )


def test_costs_of_commands_are_those_of_the_records() -> None:
    costs = {(f"`{r['command']}`", f"{r['cpu_seconds']:.0f} s", peak(r)) for r in read_results("command_costs")}
    (table,) = re.findall(r"\| command \| CPU time .*?\n\n", PAGES["docs/commands.md"], flags=re.DOTALL)
    rows = {tuple(cell.strip() for cell in line.split("|")[1:4]) for line in table.strip().splitlines()[2:]}
    assert rows == costs
    assert {words.split()[1].strip("`") for words, *_ in costs} <= typer.main.get_command(app).commands.keys()


def peak(record: Record) -> str:
    return f"{record['peak_memory_bytes'] / 1e9:.2f} GB"
