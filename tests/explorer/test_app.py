"""What the Gradio page answers; needs the extra ``explore``."""

import json
import runpy
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from modeling_alibi_gpt import AlibiGPTConfig, AlibiGPTForCausalLM
from modeling_alibi_gpt.data.corpora import load_documents
from modeling_alibi_gpt.data.tokenizer_training import train_tokenizer
from modeling_alibi_gpt.explorer import probes
from tests.support.browser import Document, dump_address, needs_browser


pytest.importorskip("gradio")

from modeling_alibi_gpt.explorer import app  # noqa: E402


pytestmark = pytest.mark.integrations
SPACE = Path(__file__).parents[2] / "examples" / "space" / "app.py"
TEXT = "one line of words after another, then one line more"


def save_subject(folder: Path, **fields: Any) -> str:
    text = folder.parent / "text.txt"
    text.write_text("one line of words after another\n" * 50, encoding="utf-8")
    train_tokenizer(load_documents(f"text:{text}", "all"), 300).save_pretrained(folder)
    torch.manual_seed(0)
    config = AlibiGPTConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, **fields)
    AlibiGPTForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def subjects(tmp_path: Path) -> list[app.Subject]:
    folders = [save_subject(tmp_path / "alibi"), save_subject(tmp_path / "rope", position_method="rope")]
    return app.load_subjects(folders)


def test_the_answers_say_what_the_probes_measure(subjects: list[app.Subject]) -> None:
    subject = subjects[0]
    input_ids = subject.encode(TEXT)
    attention = probes.head_attention(subject.model, input_ids, 1, 2)
    _, sentence = app.describe_attention(subject, TEXT, 2, 3)
    far = probes.mean_distance(attention.with_bias), probes.mean_distance(attention.without_bias)
    assert far[0] < far[1]
    assert f"head 3 of layer 2 looks back {far[0]:.1f} tokens on average with its bias, and {far[1]:.1f}" in sentence
    _, sentence = app.describe_next_tokens(subject, TEXT, 0.25)
    (best,) = probes.next_tokens(subject.model, subject.tokenizer, input_ids, 0.25, num_tokens=1)
    probability = f"probability {best.changed_probability:.3f}"
    assert f"{best.text!r} is the most likely next token with β = 0.25: {probability}" in sentence


def test_layers_and_heads_count_from_one(subjects: list[app.Subject]) -> None:
    num_layers = subjects[0].model.config.num_hidden_layers
    with pytest.raises(ValueError, match=f"layer must be from 1 to {num_layers} for alibi, got {num_layers + 1}"):
        app.describe_attention(subjects[0], TEXT, num_layers + 1, 1)
    with pytest.raises(ValueError, match="head must be from 1 to [0-9]+ for alibi, got 0"):
        app.describe_attention(subjects[0], TEXT, 1, 0)


def test_two_models_are_compared_on_one_text(subjects: list[app.Subject]) -> None:
    drawing, sentence = app.compare_losses(subjects, TEXT)
    for subject in subjects:
        nats = probes.position_nats(subject.model, subject.encode(TEXT))
        assert f"**{subject.name}**: {nats.mean().item():.3f} nats per token" in sentence
    labels = [text.get_text() for text in drawing.draw().axes[0].get_legend().get_texts()]
    assert labels == ["alibi", "rope", "training length, 1,024 tokens"]


def test_a_model_without_alibi_answers_with_an_error_for_people(subjects: list[app.Subject]) -> None:
    answer = app._as_html(lambda: app.describe_next_tokens(subjects[1], TEXT, 0.5))
    with pytest.raises(app.gr.Error, match="needs position_method alibi .* got another position method"):
        answer()


def test_a_long_text_keeps_its_end(subjects: list[app.Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subjects[0].encode(TEXT)
    monkeypatch.setattr(app, "MAX_TOKENS", 5)
    assert torch.equal(subjects[0].encode(TEXT), whole[:, -5:])


def test_the_frame_starts_from_the_config_or_says_why_not(subjects: list[app.Subject]) -> None:
    assert app.bias_frame(subjects[0]).startswith("<iframe")
    frame = app.bias_frame(subjects[1])
    assert (
        frame.startswith("<p>rope: expected position_method &#x27;alibi&#x27;") and "starts with its defaults" in frame
    )


def test_a_third_model_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 2 models, got 3"):
        app.load_subjects(["a", "b", "c"])


def test_only_two_models_get_a_choice(subjects: list[app.Subject]) -> None:
    def visible_choices(chosen: list[app.Subject]) -> list[list[str]]:
        components = json.loads(json.dumps(app.build_app(chosen).get_config_file()["components"], default=str))
        dropdowns = [c["props"] for c in components if c["type"] == "dropdown"]
        return [[name for name, _ in props["choices"]] for props in dropdowns if props["visible"]]

    assert visible_choices(subjects) == [["alibi", "rope"]]
    assert visible_choices(subjects[:1]) == visible_choices([]) == []


def test_figures_follow_the_color_scheme_and_say_what_they_show(subjects: list[app.Subject]) -> None:
    shown, sentence = app._as_html(lambda: app.describe_attention(subjects[0], TEXT, 1, 1))()
    assert shown.startswith(f'<div role="img" aria-label="{sentence}"><svg ')
    assert "fill: var(--c-2b2b2b, #2b2b2b)" in shown and "--c-2b2b2b: #e8e6e3" in app.CSS
    assert ">0.01</text>" in shown and "$" not in shown, "weights of the scale are plain numbers"


@pytest.mark.parametrize("names", ["", "someone/alibi", "someone/alibi someone/rope"])
def test_a_space_shows_the_models_that_its_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    def download(name: str, local_dir: str) -> str:
        Path(local_dir).mkdir(parents=True)
        return save_subject(Path(local_dir))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELS", names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    page = runpy.run_path(str(SPACE))["page"]
    shown = json.dumps(page.get_config_file()["components"], default=str)
    assert [f'"{name}"' in shown for name in ("alibi", "rope")] == [name in names for name in ("alibi", "rope")]


@needs_browser
def test_without_a_model_a_browser_shows_the_page_with_its_sliders() -> None:
    page = app.build_app()
    _, address, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, inbrowser=False, quiet=True, theme=app.THEME, css=app.CSS
    )
    try:
        html = dump_address(address, "--virtual-time-budget=20000")
    finally:
        page.close()
    (frame,) = [attributes for tag, attributes in Document(html).elements if tag == "iframe"]
    assert frame["title"] == "Slopes and windows"
    assert Document(str(frame["srcdoc"])).with_id("beta-slider")["type"] == "range"
