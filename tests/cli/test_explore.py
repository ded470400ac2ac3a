"""``alibi-gpt explore``: the page it writes, and what it refuses in one line."""

from pathlib import Path
from typing import Any

import pytest

from alibi_gpt_cli.main import main
from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.explorer.static_page import render_static_page, state_of_config


def save_model(folder: Path, **fields: Any) -> str:
    config = AlibiGPTConfig(vocab_size=300, hidden_size=48, num_hidden_layers=1, num_attention_heads=3, **fields)
    AlibiGPTForCausalLM(config).save_pretrained(folder)
    return str(folder)


def test_a_page_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "explorer.html"
    assert main(["explore", "--static", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert html == render_static_page()
    assert capsys.readouterr().out == f"{len(html.encode()):,} bytes: open {page}\n"


def test_the_page_of_a_model_starts_with_its_config(tmp_path: Path) -> None:
    model, page = save_model(tmp_path / "model", alibi_beta=0.25), tmp_path / "explorer.html"
    assert main(["explore", model, "--static", str(page)]) == 0
    config = AlibiGPTConfig.from_pretrained(model)
    assert page.read_text(encoding="utf-8") == render_static_page(state_of_config(config)) != render_static_page()


def test_a_model_that_the_page_cannot_show_leaves_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, page = save_model(tmp_path / "model", position_method="rope"), tmp_path / "explorer.html"
    capsys.readouterr()
    for words, message in (
        ([model], "error: expected position_method 'alibi', got 'rope'\n"),
        ([model, model], "error: a static page shows one model, got 2\n"),
        ([str(tmp_path / "nothing")], f"error: {tmp_path}/nothing: no model here,"),
    ):
        assert main(["explore", *words, "--static", str(page)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(message) and printed.err.count("\n") == 1
        assert not page.exists()
