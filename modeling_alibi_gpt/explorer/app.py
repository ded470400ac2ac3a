"""The Gradio page: the static page in a frame and, given checkpoints, how they process a text."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_alibi_gpt.checkpoints.load import load_causal_lm, load_model_tokenizer, train_context_length
from modeling_alibi_gpt.explorer import figures, probes
from modeling_alibi_gpt.explorer.static_page import render_static_page, state_of_config
from modeling_alibi_gpt.modeling_alibi_gpt import AlibiGPTForCausalLM
from modeling_alibi_gpt.report.drawing import Drawing
from modeling_alibi_gpt.report.svg import dark_css


MAX_MODELS = 2
MAX_TOKENS = 4096  # of a pasted text; earlier tokens are dropped, as the page says
TITLE = "ALiBi explorer"
# Gradio's own themes fetch fonts from the network.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# Gradio sets the class "dark" on the body; figures shrink on narrow screens.
CSS = ".dark { " + dark_css() + " } .figure svg { max-width: 40rem; width: 100%; height: auto; }"
EXAMPLE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of light, "
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint that the page inspects."""

    name: str
    model: AlibiGPTForCausalLM
    tokenizer: PreTrainedTokenizerBase

    def encode(self, text: str) -> Tensor:
        """Token ids ``(1, T)`` of a text, at most its last ``MAX_TOKENS``."""
        return probes.encode_text(self.tokenizer, text)[:, -MAX_TOKENS:]


def load_subjects(model_dirs: Sequence[str]) -> list[Subject]:
    """Load at most two checkpoints.

    Raises:
        ValueError: There are more than two, or a folder does not contain a usable AlibiGPT.
    """
    if len(model_dirs) > MAX_MODELS:
        raise ValueError(f"expected at most {MAX_MODELS} models, got {len(model_dirs)}")
    names = [Path(folder).resolve().name for folder in model_dirs]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in model_dirs]
    subjects = []
    for name, folder in zip(names, model_dirs, strict=True):
        model = load_causal_lm(folder)
        if not isinstance(model, AlibiGPTForCausalLM):
            raise ValueError(f"{folder}: expected an AlibiGPT, got {type(model).__name__}; convert it first")
        subjects.append(Subject(name=name, model=model, tokenizer=load_model_tokenizer(folder)))
    return subjects


def build_app(subjects: Sequence[Subject] = ()) -> gr.Blocks:
    """Build the page, ready for ``launch(theme=THEME, css=CSS)`` or a Space."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as app:
        if not subjects:
            gr.HTML(bias_frame())
            return app
        gr.Markdown(f"# {TITLE}: {' and '.join(subject.name for subject in subjects)}")
        text = gr.Textbox(
            EXAMPLE, label="Text", lines=4, max_lines=8, info=f"The last {MAX_TOKENS:,} tokens are read."
        )
        names = [subject.name for subject in subjects]
        model = gr.Dropdown(
            names, value=names[0], type="index", label="Model for attention and next token", visible=len(names) > 1
        )
        with gr.Tab("Attention"):
            _attention_tab(app, subjects, text, model)
        with gr.Tab("Loss by position"):
            measure = gr.Button("Measure")
            _show([measure.click, app.load], lambda words: compare_losses(subjects, words), [text])
        with gr.Tab("Next token"):
            _next_token_tab(subjects, text, model)
        with gr.Tab("Slopes and windows"):
            gr.HTML(bias_frame(subjects[0]))
    return app


def bias_frame(subject: Subject | None = None) -> str:
    """The static page in a frame, initialized from a model's config if that determines the slopes."""
    state, note = None, ""
    if subject is not None:
        try:
            state = state_of_config(subject.model.config)
        except ValueError as error:
            note = f"<p>{html.escape(subject.name)}: {html.escape(str(error))}. The page starts with its defaults.</p>"
    page = html.escape(render_static_page(state))
    return (
        f'{note}<iframe title="Slopes and windows" srcdoc="{page}" style="width:100%;height:85vh;border:0"></iframe>'
    )


def describe_attention(subject: Subject, text: str, layer: int, head: int) -> tuple[Drawing, str]:
    """Attention heat maps and mean attention distance of a head; layer and head count from 1."""
    config = subject.model.config
    for name, number, count in (
        ("layer", layer, config.num_hidden_layers),
        ("head", head, config.num_attention_heads),
    ):
        if not 1 <= number <= count:
            raise ValueError(f"{name} must be from 1 to {count} for {subject.name}, got {number}")
    input_ids = subject.encode(text)
    attention = probes.head_attention(subject.model, input_ids, layer - 1, head - 1)
    both = attention.with_bias, attention.without_bias
    far = [probes.mean_distance(weights) for weights in both]
    figure = figures.attention_figure(*map(probes.pool_attention, both), input_ids.shape[1])
    return figure, (
        f"Over {input_ids.shape[1]:,} tokens, head {head} of layer {layer} looks back {far[0]:,.1f} tokens on average "
        f"with its bias, and {far[1]:,.1f} without. Only the bias of this layer is left out."
    )


def compare_losses(subjects: Sequence[Subject], text: str) -> tuple[Drawing, str]:
    """Loss by position of every model, and a summary of each."""
    curves, lengths, sentences = {}, {}, []
    for subject in subjects:
        input_ids = subject.encode(text)
        nats = probes.position_nats(subject.model, input_ids)
        curves[subject.name] = probes.bin_positions(nats)
        if (length := train_context_length(subject.model.config)) is not None:
            lengths[subject.name] = length
        bits = probes.bits_per_byte(nats, subject.tokenizer, input_ids)
        sentences.append(
            f"**{subject.name}**: {nats.mean().item():.3f} nats per token and {bits:.3f} bits per byte "
            f"over {len(nats):,} predictions."
        )
    if len(subjects) > 1:
        sentences.append(
            "Nats per token are comparable only between models with the same tokenizer; bits per byte always are."
        )
    return figures.loss_figure(curves, lengths), "\n\n".join(sentences)


def describe_next_tokens(subject: Subject, text: str, beta: float) -> tuple[Drawing, str]:
    """Next-token probabilities with another beta, and a summary of the most likely token."""
    input_ids = subject.encode(text)
    tokens = probes.next_tokens(subject.model, subject.tokenizer, input_ids, beta)
    own, best = subject.model.config.alibi_beta, tokens[0]
    sentence = (
        f"After {input_ids.shape[1]:,} tokens, {best.text!r} is the most likely next token with β = {beta:.4g}: "
        f"probability {best.changed_probability:.3f}, against {best.probability:.3f} with the model's β = {own:.4g}."
    )
    return figures.next_token_figure(tokens, own, beta), sentence


def _attention_tab(app: gr.Blocks, subjects: Sequence[Subject], text: gr.Textbox, model: gr.Dropdown) -> None:
    configs = [subject.model.config for subject in subjects]
    with gr.Row():
        layer = gr.Slider(1, max(config.num_hidden_layers for config in configs), value=1, step=1, label="Layer")
        head = gr.Slider(1, max(config.num_attention_heads for config in configs), value=1, step=1, label="Head")

    def answer(index: int, words: str, layer: int, head: int) -> tuple[Drawing, str]:
        return describe_attention(subjects[index], words, layer, head)

    triggers = [gr.Button("Show").click, app.load, layer.change, head.change, model.change]
    _show(triggers, answer, [model, text, layer, head])


def _next_token_tab(subjects: Sequence[Subject], text: gr.Textbox, model: gr.Dropdown) -> None:
    exponent = gr.Slider(
        -6, 6, value=0, step=0.125, label="log2 of β", info="0 is β = 1; the weights stay as they are."
    )

    def answer(index: int, words: str, exponent: float) -> tuple[Drawing, str]:
        return describe_next_tokens(subjects[index], words, 2.0**exponent)

    _show([gr.Button("Show").click, exponent.change], answer, [model, text, exponent])


def _show(triggers: Sequence[Any], answer: Callable[..., tuple[Drawing, str]], inputs: Sequence[Any]) -> None:
    """A figure and its summary, updated on every trigger."""
    sentence, figure = gr.Markdown(), gr.HTML(elem_classes="figure")
    # One at a time, because trying another beta modifies the model.
    one_at_a_time: Any = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    gr.on(
        triggers,
        _as_html(answer),
        inputs,
        [figure, sentence],
        trigger_mode="always_last",
        **one_at_a_time,
    )


def _as_html(answer: Callable[..., tuple[Drawing, str]]) -> Callable[..., tuple[str, str]]:
    """Return the drawing as inline SVG, which follows the color scheme, and show errors as messages."""

    @wraps(answer)
    def run(*args: Any) -> tuple[str, str]:
        try:
            drawing, sentence = answer(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        label = html.escape(sentence.replace("*", ""))
        return f'<div role="img" aria-label="{label}">{drawing.svg}</div>', sentence

    return run
