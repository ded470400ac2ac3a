"""Static page about slopes, biases and windows: one self-contained HTML file, computed in the browser."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from modeling_alibi_gpt.runtime.atomic import to_json


MAX_HEADS = 256  # limit of alibi.js
_TEMPLATES = Path(__file__).with_name("templates")
_SCRIPTS = ("alibi.js", "charts.js", "app.js")
_NAMES_IN_PAGE = {"old_beta": "oldBeta", "bias_max": "biasMax"}


@dataclass(frozen=True, kw_only=True)
class PageState:
    """Initial values of the controls of the page.

    Attributes:
        heads: Number of attention heads.
        kind: Slope kind: ``geometric``, ``uniform`` or ``custom``.
        beta: The new beta.
        old_beta: The beta to compare with.
        bias_max: Range of the geometric exponents.
        custom: Multipliers of ``custom``, one per head.
        inside: Whether the bias is multiplied by the attention scaling.
        scaling: Factor of ``q . k``.
        length: Text length in tokens.
        tolerance: Largest total attention weight that a window may leave out.
        margin: Nats by which a key's content score may exceed that of the query's own key.
        head: The selected head, from 1.
        distance: Distance in tokens for which the table shows the bias.
        linear: Whether the distance axis is linear.
    """

    heads: int = 8
    kind: str = "geometric"
    beta: float = 0.5
    old_beta: float = 1.0
    bias_max: float = 8.0
    custom: tuple[float, ...] = ()
    inside: bool = False
    scaling: float = 0.125
    length: int = 2048
    tolerance: float = 1e-6
    margin: float = 0.0
    head: int = 4
    distance: int = 64
    linear: bool = False


def state_of_config(config: Any) -> PageState:
    """Return the controls that match an AlibiGPT config. Both betas are set to its beta.

    Raises:
        ValueError: The model does not use ALiBi, its slopes are trained or scaled, or it has too many heads.
    """
    if getattr(config, "position_method", None) != "alibi":
        raise ValueError(f"expected position_method 'alibi', got {getattr(config, 'position_method', None)!r}")
    if config.alibi_trainable != "none" or config.alibi_scaling is not None:
        raise ValueError(
            "expected slopes that only the config determines, got "
            f"alibi_trainable {config.alibi_trainable!r} and alibi_scaling {config.alibi_scaling}"
        )
    if config.num_attention_heads > MAX_HEADS:
        raise ValueError(f"the page shows at most {MAX_HEADS} heads, got {config.num_attention_heads}")
    return PageState(
        heads=config.num_attention_heads,
        kind=config.alibi_slope_kind,
        beta=config.alibi_beta,
        old_beta=config.alibi_beta,
        bias_max=config.alibi_bias_max,
        custom=tuple(config.alibi_slopes or ()),
        inside=config.alibi_bias_inside_scaling,
        scaling=config.scaling,
        length=max(2, config.train_context_length),
        tolerance=config.alibi_tolerance,
        head=min(4, config.num_attention_heads),
        distance=min(64, config.train_context_length),
    )


def render_static_page(state: PageState | None = None) -> str:
    """Return the page as HTML that needs no network."""
    values = dataclasses.asdict(state or PageState())
    # "<" could close the script element.
    encoded = to_json({_NAMES_IN_PAGE.get(name, name): value for name, value in values.items()}).replace(
        "<", "\\u003c"
    )
    script = "\n".join(_read(name) for name in _SCRIPTS)
    return Template(_read("page.html")).substitute(style=_read("style.css"), script=script, state=encoded)


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
