"""The report shows what the records say, stands alone, and refuses what it does not understand."""

import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from modeling_alibi_gpt.report import report
from modeling_alibi_gpt.report.drawing import Drawing
from modeling_alibi_gpt.report.frames import separate_studies
from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.runtime.records import write_records
from tests.support.comparison_cases import methods
from tests.support.example_records import (
    CURVES,
    LENGTHS,
    PROVENANCE,
    beta_record,
    bias_by_distance_record,
    bias_record,
    demo_records,
    extrapolation_record,
    perplexity_record,
    trained_beta_record,
    training_record,
)


SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"
FIGURES = [
    *("beta_posthoc", "beta_retrain", "bias", "bias_by_distance"),
    *("extrapolation", "loss_by_position", "training_loss"),
]


class Page(HTMLParser):
    """The addresses, identifiers, tags and text of an HTML page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def tables_of(markdown: str, title: str) -> list[list[list[str]]]:
    """The tables in the section that starts with ``title``: rows of cells, headers first, bold marks taken off."""
    section = next(part for part in markdown.split("\n## ") if part.startswith(title))
    blocks = [block.splitlines() for block in section.split("\n\n") if block.startswith("|")]
    return [
        [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
        for lines in blocks
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    paths = build_report(demo_records(), folder, title="Demo")
    return {
        "paths": paths,
        "folder": folder,
        "page": Page(Path(paths["html"]).read_text(encoding="utf-8")),
        "markdown": Path(paths["markdown"]).read_text(encoding="utf-8"),
    }


def build_markdown(records: list[dict[str, Any]], folder: Path) -> str:
    return Path(build_report(records, folder, title="T")["markdown"]).read_text(encoding="utf-8")


def test_every_figure_is_there_and_is_a_picture(demo: dict[str, Any]) -> None:
    assert sorted(Path(path).stem for path in demo["paths"]["figures"]) == FIGURES
    for path in map(Path, demo["paths"]["figures"]):
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
        assert int.from_bytes(data[16:20], "big") == 810  # 5.4 inches at 150 dots


def test_nothing_else_is_written(demo: dict[str, Any]) -> None:
    written = {str(path) for path in demo["folder"].rglob("*") if path.is_file()}
    assert written == {demo["paths"]["html"], demo["paths"]["markdown"], *demo["paths"]["figures"]}


def test_the_page_stands_alone(demo: dict[str, Any]) -> None:
    page = demo["page"]
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("svg") == len(demo["paths"]["figures"]) and page.values("src") == []
    linked = {link.removeprefix("#") for link in page.values("href") if not link.startswith("data:image/png;base64,")}
    clipped = {link.removeprefix("url(#").removesuffix(")") for link in page.values("clip-path")}
    assert linked | clipped == set(page.values("id"))
    html = Path(demo["paths"]["html"]).read_text(encoding="utf-8").replace("url(#", "")
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", html))


def test_the_page_suits_a_phone(demo: dict[str, Any]) -> None:
    html = Path(demo["paths"]["html"]).read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert html.count("<table>") == html.count('<div class="scroll" tabindex="0"><table>') > 0
    figures = demo["page"].values("aria-label")[1:]  # the first is that of the list of sections
    assert len(figures) == html.count("<figure") and all(figures)


def test_markdown_links_to_every_figure(demo: dict[str, Any]) -> None:
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", demo["markdown"])
    assert [str(demo["folder"] / link) for link in links] == demo["paths"]["figures"]


def test_page_and_markdown_show_the_same_cells(demo: dict[str, Any]) -> None:
    titles = re.findall(r"^## (.+)$", demo["markdown"], flags=re.MULTILINE)
    assert len(titles) == 11
    for title in titles:
        assert title in demo["page"].text
        for cell in (cell for table in tables_of(demo["markdown"], title) for row in table for cell in row):
            assert cell in demo["page"].text


def test_extrapolation_table_equals_the_records(demo: dict[str, Any]) -> None:
    (header, *rows), *_ = tables_of(demo["markdown"], "Perplexity against length")
    assert header == ["model", "protocol", "128", "256", "512", "1,024", "2,048", "trained at"]
    assert [row[0] for row in rows[::2]] == ["alibi", "learned", "none", "rope", "sinusoidal"]
    for name, protocol, *cells, train_length in rows:
        kind = "nonoverlapping" if protocol == "non-overlapping" else "sliding"
        expected = [extrapolation_record(name, kind, length)["perplexity"] for length in LENGTHS]
        assert cells == ["failed (1)" if value is None else f"{value:.2f}" for value in expected]
        assert train_length == "128"
    assert "\n1. learned: the learned table ends at 128 positions\n" in demo["markdown"]


def test_beta_table_is_sorted_and_the_taken_one_is_bold(demo: dict[str, Any]) -> None:
    ((header, *rows),) = tables_of(demo["markdown"], "\N{GREEK SMALL LETTER BETA}, trained anew (demo)")
    assert header[1:] == ["perplexity", "nats per token", "seed 0", "seed 1", "seed 2", "state"]
    assert [row[0] for row in rows] == ["1/32", "1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16"]
    assert [row[-1] for row in rows] == ["fail", *["complete"] * 8, "pruned"]
    half = beta_record("retrain", 3, 0.5)
    numbers = [half["nats_per_token"], *half["nats_per_token_by_seed"]]
    assert rows[4][1:-1] == [f"{half['perplexity']:.2f}", *(f"{number:.4f}" for number in numbers)]
    assert re.findall(r"^\| \*\*(.+?)\*\*", demo["markdown"], flags=re.MULTILINE) == ["1", "1"]
    assert f"The lowest mean perplexity is {half['perplexity']:.2f} at \u03b2 1/2. Not told apart" in demo["markdown"]


def test_trained_beta_tables_equal_the_records(demo: dict[str, Any]) -> None:
    runs, slopes = tables_of(demo["markdown"], "Trained")
    expected = trained_beta_record("beta", 1)
    assert runs[2][:4] == ["beta", "1", f"{expected['perplexity']:.2f}", f"{expected['nats_per_token']:.4f}"]
    assert runs[2][4:] == [f"{beta:.4g}" for beta in expected["beta_by_layer"]]
    by_layer = trained_beta_record("slopes", 0)["slopes_by_layer"]
    assert slopes[3][:3] == ["0", "3", f"{by_layer[2][0]:.4g}"]
    assert len(slopes) == 1 + len(by_layer) and len(slopes[0]) == 2 + len(by_layer[0])


def test_training_and_perplexity_tables_equal_the_records(demo: dict[str, Any]) -> None:
    ((_, *trained),) = tables_of(demo["markdown"], "Training")
    assert {row[0]: float(row[2]) for row in trained} == {name: curve[0] for name, curve in CURVES.items()}
    assert trained[0][4:] == ["0", "2,171,712", "128", "819,200", "65,536", "2 min 22 s", "bf16"]
    ((_, alibi, sinusoidal),) = tables_of(demo["markdown"], "Perplexity\n")
    assert (alibi[0], sinusoidal[0]) == ("alibi", "sinusoidal")
    assert alibi[4:] == ["93.42", "4.5371", f"{perplexity_record('alibi')['bits_per_byte']:.4f}", "65,536", "203,161"]


def test_provenance_table_gathers_what_was_made_with_the_same_versions_and_hardware(tmp_path: Path) -> None:
    first, second, other = (training_record("alibi", seed) for seed in range(3))
    second["provenance"] |= {"time_utc": "2025-11-22T08:00:00+00:00", "git_dirty": True}
    other["provenance"] |= {"git_dirty": True, "hardware": None, "git_commit": "5" * 40, "source": "text:a.txt"}
    paper = training_record("alibi") | {"provenance": {"source": "a paper"}}
    ((header, *rows),) = tables_of(build_markdown([first, second, other, paper], tmp_path), "Provenance")
    cells = {row[0]: row[1:] for row in rows}
    assert header[1:] == ["2 records", "1 record", "1 record"]
    assert cells["seeds"] == ["0, 1", "2", "\N{EN DASH}"]
    assert cells["time (UTC)"][0] == "2025-11-21T13:30:00+00:00 to 2025-11-22T08:00:00+00:00"
    assert cells["commit"] == [
        "0f3c9a1d7be2 (1 of 2 records with changes)",
        "555555555555 with changes",
        "\N{EN DASH}",
    ]
    assert cells["text"] == ["\N{EN DASH}", "text:a.txt", "\N{EN DASH}"]
    assert cells["published in"] == ["\N{EN DASH}", "\N{EN DASH}", "a paper"]
    assert cells["memory"][0] == "25.0 GiB" and cells["torch"][0] == "2.13.0+cpu"


@pytest.mark.parametrize(
    ("record", "titles", "figures"),
    [
        (bias_record(), ["Bias of each head"], ["bias.png"]),
        (bias_by_distance_record(), ["Bias by distance"], ["bias_by_distance.png"]),
        (perplexity_record("alibi"), ["Perplexity"], []),
        (training_record("alibi") | {"loss_history": []}, ["Training"], []),
        (extrapolation_record("learned", "sliding", 256), ["Perplexity against length"], []),
        (beta_record("posthoc", 0, 2.0, "FAIL"), ["\u03b2, changed after training (demo)"], []),
        (trained_beta_record("beta", 0), ["Trained \u03b2"], []),
    ],
)
def test_sections_without_records_are_left_out(
    record: dict[str, Any], titles: list[str], figures: list[str], tmp_path: Path
) -> None:
    paths = build_report([record], tmp_path, title="T")
    markdown = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", markdown, flags=re.MULTILINE) == [*titles, "Provenance"]
    assert [Path(path).name for path in paths["figures"]] == figures


def test_text_of_the_records_is_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> | *a* [b](c) $x$ & \N{GREEK SMALL LETTER BETA}"
    records = [training_record("alibi") | {"name": name}, bias_record() | {"name": name}]
    paths = build_report(records, tmp_path, title=name)
    page = Page(Path(paths["html"]).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(name) == 4 + 40  # title, heading, table, name of a curve, and each of its points
    markdown = Path(paths["markdown"]).read_text(encoding="utf-8")
    assert r"| \<script\>alert(1)\</script\> \| \*a\* \[b\](c) $x$ & " in markdown


def test_of_a_repeated_measurement_the_last_is_shown(tmp_path: Path) -> None:
    old = extrapolation_record("alibi", "sliding", 128)
    markdown = build_markdown([old, old | {"perplexity": 55.5}], tmp_path)
    assert "Measurements repeated: 1; the last one of each is shown." in markdown
    ((_, row),) = tables_of(markdown, "Perplexity against length")
    assert row[2] == "55.50"


def test_each_text_has_its_section(tmp_path: Path) -> None:
    first = [extrapolation_record("alibi", "sliding", length) for length in LENGTHS]
    place = {"source": "text:b.txt", "data_fingerprint": "other", "max_tokens": 5000}
    second = [record | {"perplexity": 55.5, "provenance": record["provenance"] | place} for record in first]
    markdown = build_markdown([*first, *second], tmp_path)
    assert "repeated" not in markdown
    ((_, row),) = tables_of(markdown, f"Perplexity against length, text {PROVENANCE['data_fingerprint']}")
    assert row[2] == f"{first[0]['perplexity']:.2f}"
    ((_, row),) = tables_of(markdown, "Perplexity against length, text:b.txt, at most 5,000 tokens")
    assert row[2:7] == ["55.50"] * 5


def test_perplexities_on_each_text_have_a_section(tmp_path: Path) -> None:
    records = []
    for name, perplexity in (("a", 20.0), ("b", 90.0)):
        record = perplexity_record("alibi")
        where = record["provenance"] | {"source": f"text:{name}.txt", "data_fingerprint": name}
        records.append(record | {"perplexity": perplexity, "provenance": where})
    markdown = build_markdown(records, tmp_path)
    for name, perplexity in (("a", "20.00"), ("b", "90.00")):
        ((_, row),) = tables_of(markdown, f"Perplexity, text:{name}.txt")
        assert row[4] == perplexity


def test_several_strides_and_back_ends_are_told_apart(tmp_path: Path) -> None:
    def read(stride: int | None, back_end: str, length: int = 128) -> dict[str, Any]:
        record = extrapolation_record("alibi", "sliding", length)
        return record | {
            "stride_tokens": stride or length // 4,
            "provenance": record["provenance"] | {"attn_implementation": back_end},
        }

    markdown = build_markdown([read(None, "sdpa"), read(128, "sdpa"), read(None, "sdpa", 256)], tmp_path / "strides")
    assert "repeated" not in markdown
    ((_, *rows),) = tables_of(markdown, "Perplexity against length")
    assert [row[0] for row in rows] == ["alibi (stride 0.25 of the length)", "alibi (stride 1 of the length)"]
    fixed = [read(32, "sdpa"), read(64, "sdpa"), read(64, "sdpa", 256), read(32, "sdpa", 256)]
    ((_, *rows),) = tables_of(build_markdown(fixed, tmp_path / "fixed"), "Perplexity against length")
    assert [row[0] for row in rows] == ["alibi (stride 32)", "alibi (stride 64)"]
    beside = [*(read(None, "sdpa", length) for length in LENGTHS), read(64, "sdpa", 128), read(64, "sdpa", 512)]
    ((_, *rows),) = tables_of(build_markdown(beside, tmp_path / "beside"), "Perplexity against length")
    assert [row[0] for row in rows] == ["alibi", "alibi (stride 64)"]
    markdown = build_markdown([read(None, "sdpa"), read(None, "alibi_banded")], tmp_path / "back_ends")
    ((_, *rows),) = tables_of(markdown, "Perplexity against length")
    assert [row[0] for row in rows] == ["alibi (alibi_banded)", "alibi (sdpa)"]


def test_other_tokens_and_dtypes_are_told_apart(tmp_path: Path) -> None:
    records = []
    for name, dtype, stream in (("a", "float32", "x"), ("a", "bfloat16", "x"), ("b", "float32", "y")):
        record = extrapolation_record("alibi", "sliding", 128)
        where = record["provenance"] | {"dtype": dtype, "stream_fingerprint": stream}
        records.append(record | {"name": name, "model": f"runs/{name}", "provenance": where})
    markdown = build_markdown(records, tmp_path)
    assert "The models read different tokens, so their perplexities cannot be compared." in markdown
    perplexities, bits = tables_of(markdown, "Perplexity against length")
    assert [row[0] for row in perplexities[1:]] == ["a (bfloat16)", "a (float32)", "b"]
    assert bits[1][2] == f"{records[0]['bits_per_byte']:.4f}"
    assert "different tokens" not in build_markdown(records[:2], tmp_path)


def test_two_sweeps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sweeps = [
        [*(beta_record("retrain", n, beta) for n, beta in enumerate((0.5, 1.0))), trained_beta_record("beta", seed)]
        for seed in (0, 1)
    ]
    sweeps = [[record | {"study": "beta"} for record in sweep] for sweep in sweeps]
    studies = [record["study"] for record in separate_studies(sum(sweeps, []))]
    assert studies == ["beta"] * 3 + ["beta (2)"] * 3
    assert separate_studies(sweeps[0]) == sweeps[0]


def test_a_comparison_on_a_stream_has_no_corpus(tmp_path: Path) -> None:
    records = [record for record in methods() if record["kind"] != "corpus"]
    markdown = build_markdown(records, tmp_path)
    assert "## Length extrapolation, test" in markdown and "MB of text" not in markdown


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    records = [extrapolation_record("alibi", "sliding", length) for length in LENGTHS]
    records += [record | {"model": "runs/other/alibi"} for record in records]
    ((_, *rows),) = tables_of(build_markdown(records, tmp_path), "Perplexity against length")
    assert [row[0] for row in rows] == ["alibi (runs/demo/alibi)", "alibi (runs/other/alibi)"]


def test_each_study_has_its_own_section_and_figure(tmp_path: Path) -> None:
    records = [beta_record("retrain", n, beta) | {"study": study} for study in "ab" for n, beta in enumerate((0.5, 1))]
    figures = build_report(records, tmp_path, title="T")["figures"]
    assert [Path(path).name for path in figures] == ["beta_retrain.png", "beta_retrain_2.png"]


def test_a_learned_beta_stands_beside_the_study_that_it_was_learned_in_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: dict[str, list[dict[str, Any]]] = {}
    draw = report.beta_figure

    def watch(trials: pd.DataFrame, trained: list[dict[str, Any]]) -> Drawing:
        beside[trials["mode"].iloc[0] + " " + trials["study"].iloc[0]] = trained
        return draw(trials, trained)

    monkeypatch.setattr(report, "beta_figure", watch)
    learned = trained_beta_record("beta", 0)
    build_report([beta_record("retrain", 0, 1.0), beta_record("posthoc", 0, 1.0), learned], tmp_path, title="T")
    assert runs_of(beside) == {"retrain demo": [learned["perplexity"]], "posthoc demo": []}
    beside.clear()
    records = [beta_record("retrain", 0, 1.0) | {"study": study} for study in "ab"]
    of_b = trained_beta_record("beta", 1) | {"study": "b"}
    build_report([*records, learned, of_b], tmp_path, title="T")
    assert runs_of(beside) == {"retrain a": [], "retrain b": [of_b["perplexity"]]}


def runs_of(beside: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    return {study: [run["perplexity"] for run in runs] for study, runs in beside.items()}


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([], "got no records"),
        ([bias_record(), {"kind": "speed"}], "kind 'speed'; expected one of training"),
        ([{"kind": "training", "name": "alibi"}], "a record of kind training needs provenance"),
        ([bias_record(), beta_record("retrain", 0, 1.0) | {"mode": "guess"}], "mode 'guess'; expected one of retrain"),
    ],
)
def test_what_it_does_not_understand_is_refused_before_anything_is_written(
    records: list[dict[str, Any]], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_report(records, tmp_path / "report", title="T")
    assert not (tmp_path / "report").exists()


def run_script(*arguments: str) -> int:
    exit_code = runpy.run_path(str(SCRIPT))["main"](arguments)
    assert isinstance(exit_code, int)
    return exit_code


def test_the_script_ends_in_the_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write_records(files[0], [bias_record()])
    write_records(files[1], [training_record("alibi"), training_record("rope")])
    options = ["--output-dir", str(tmp_path / "out"), "--title", "Mine", "--json"]
    assert run_script("--records", *map(str, files), *options) == 0
    paths = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [Path(path).name for path in paths["figures"]] == ["bias.png", "training_loss.png"]
    assert "<h1>Mine</h1>" in Path(paths["html"]).read_text(encoding="utf-8")


def test_the_script_says_what_was_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("--records", str(tmp_path / "none.jsonl"), "--output-dir", str(tmp_path / "out")) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: records file .*none.jsonl does not exist.*\n", printed.err)
    assert not (tmp_path / "out").exists()
