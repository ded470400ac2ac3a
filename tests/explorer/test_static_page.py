"""The static page in a real browser: its numbers are those of Python, its controls work, and it needs no network."""

import dataclasses
import json
import re
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch

from modeling_alibi_gpt import AlibiGPTConfig
from modeling_alibi_gpt.alibi import alibi_bias, alibi_slopes, alibi_windows
from modeling_alibi_gpt.explorer.static_page import PageState, render_static_page, state_of_config
from tests.support.browser import Document, dump_page, needs_browser


IN_ADDRESS = {"old_beta": "oldBeta", "bias_max": "biasMax"}
STATES = {
    "default": PageState(),
    "twelve-heads": PageState(heads=12, beta=0.3, old_beta=1.7, length=4096, distance=1000, tolerance=1e-9),
    "inside": PageState(heads=71, inside=True, scaling=64**-0.5, beta=2.0, margin=7.5, tolerance=0.01, head=70),
    "uniform": PageState(heads=3, kind="uniform", beta=0.0123, distance=7, margin=-3.0, tolerance=0.5),
    "custom": PageState(heads=3, kind="custom", custom=(0.7, 0.01, 3e-5), beta=0.1, linear=True, head=2),
    "one-head": PageState(heads=1, bias_max=5.5, beta=64.0, old_beta=1 / 64, length=2, tolerance=0.9, distance=0),
}
PROBLEMS = [
    ("heads=0", "heads", "Heads must be a whole number from 1 to 256."),
    ("beta=-1", "beta", "New β must be a number above 0."),
    ("kind=custom&custom=1,2&heads=3", "custom", "Custom multipliers: expected 3, one per head, got 2."),
    ("tolerance=1", "tolerance", "Tolerance must be a number between 0 and 1."),
    ("length=1", "length", "Length must be a whole number from 2 to 1,048,576 tokens."),
    ("beta=1e-60", "beta", "A slope is too large or too small for float32."),
]


def in_address(state: PageState) -> str:
    fields = dataclasses.asdict(state)
    fields["custom"] = ",".join(map(repr, state.custom))
    words = {True: "true", False: "false"}
    return urlencode({IN_ADDRESS.get(k, k): words[v] if isinstance(v, bool) else v for k, v in fields.items()})


def slopes_of(state: PageState, beta: float) -> torch.Tensor:
    custom = state.custom if state.kind == "custom" else None
    slopes = alibi_slopes(state.heads, beta=beta, kind=state.kind, bias_max=state.bias_max, custom=custom)
    return slopes * state.scaling if state.inside else slopes


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(render_static_page(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def documents(page: Path) -> dict[str, Document]:
    """The page at every address of these tests, by the part after #; one browser shows them in turn."""
    fragments = [*map(in_address, STATES.values()), *(fragment for fragment, _, _ in PROBLEMS), "heads=4&head=9", ""]
    # The browser tells of a new address later, so each is shown by hand; rows of the one before must not remain.
    script = f"""
    const shown = {json.dumps(fragments)}.map((fragment) => {{
      history.replaceState(null, "", `#${{fragment}}`);
      document.querySelector("#table tbody").replaceChildren();
      writeState(stateOfAddress());
      update();
      return document.body.innerHTML;
    }});
    document.body.innerHTML = "<pre id='shown'></pre>";
    document.getElementById("shown").textContent = JSON.stringify(shown);
    """
    shown = json.loads(with_actions(page, page.parent, script).texts["shown"])
    return dict(zip(fragments, map(Document, shown), strict=True))


def with_actions(page: Path, tmp_path: Path, script: str) -> Document:
    """The page after a script has used its controls."""
    changed = tmp_path / "changed.html"
    html = page.read_text(encoding="utf-8")
    changed.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return Document(dump_page(changed))


@needs_browser
@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_numbers_are_those_of_python(state: PageState, documents: dict[str, Document]) -> None:
    document = documents[in_address(state)]
    old, new = slopes_of(state, state.old_beta), slopes_of(state, state.beta)
    assert document.columns["new-slope"] == new.tolist()
    assert document.columns["old-slope"] == old.tolist()
    assert document.columns["old-window"] == alibi_windows(old, state.margin, state.tolerance).tolist()
    assert document.columns["new-window"] == alibi_windows(new, state.margin, state.tolerance).tolist()
    biases = alibi_bias(new, 1, state.distance + 1)[:, 0, 0]
    assert document.columns["bias"] == biases.tolist()
    assert "problem" not in document.texts


@needs_browser
def test_an_opened_address_sets_the_controls(page: Path, documents: dict[str, Document]) -> None:
    fragment = in_address(STATES["twelve-heads"])
    assert Document(dump_page(page, fragment)).columns == documents[fragment].columns


@needs_browser
def test_moving_the_slider_changes_slopes_and_windows(page: Path, tmp_path: Path) -> None:
    script = """
    const slider = document.getElementById("beta-slider");
    slider.value = "-3";
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    """
    document = with_actions(page, tmp_path, script)
    slopes = alibi_slopes(8, beta=0.125)
    assert document.columns["new-slope"] == slopes.tolist()
    assert document.columns["new-window"] == alibi_windows(slopes, 0.0, 1e-6).tolist()
    assert document.columns["old-slope"] == alibi_slopes(8).tolist()
    assert "β = 0.125," in document.texts["summary"]
    assert document.with_id("beta-slider")["aria-valuetext"] == "0.125"


@needs_browser
@pytest.mark.parametrize(("fragment", "field", "problem"), PROBLEMS)
def test_a_value_out_of_range_is_named_and_nothing_is_computed(
    fragment: str, field: str, problem: str, documents: dict[str, Document]
) -> None:
    document = documents[fragment]
    assert document.texts["problem"] == problem
    assert document.columns == {}
    invalid = [a["name"] for _, a in document.elements if a.get("aria-invalid") == "true"]
    assert invalid == [field]


@needs_browser
def test_an_address_with_a_head_that_is_not_there_shows_the_first(documents: dict[str, Document]) -> None:
    document = documents["heads=4&head=9"]
    assert document.texts["map-head"] == "1" and len(document.columns["bias"]) == 4


@needs_browser
def test_every_control_and_chart_has_a_name(documents: dict[str, Document]) -> None:
    document = documents[""]
    labelled = {attributes["for"] for tag, attributes in document.elements if tag == "label" and "for" in attributes}
    controls = [attributes for tag, attributes in document.elements if tag in ("input", "select")]
    unnamed = [
        c["id"] for c in controls if not (c.get("aria-label") or c["id"] in labelled or c["type"] == "checkbox")
    ]
    assert unnamed == [] and len(controls) == 17
    images = [attributes for _, attributes in document.elements if attributes.get("role") == "img"]
    assert len(images) == 4 and all(image["aria-label"] for image in images)


def test_the_page_reads_nothing_from_outside() -> None:
    html = render_static_page()
    assert not re.search(r"(https?:)?//[\w.-]+\.\w+|@import|url\(|fetch\(|XMLHttpRequest|<link|<script src|<img", html)


def test_the_state_cannot_end_its_script() -> None:
    html = render_static_page(PageState(kind="</script>"))
    assert "</script>" not in html.partition('id="initial-state">')[2].partition("\n")[0].removesuffix("</script>")


@needs_browser
def test_a_config_sets_the_controls(tmp_path: Path) -> None:
    config = AlibiGPTConfig(
        num_attention_heads=6,
        hidden_size=192,
        alibi_beta=0.4,
        alibi_bias_inside_scaling=True,
        train_context_length=512,
    )
    page = tmp_path / "page.html"
    page.write_text(render_static_page(state_of_config(config)), encoding="utf-8")
    document = Document(dump_page(page))
    assert document.columns["new-slope"] == (config.base_alibi_slopes() * config.scaling).tolist()
    assert document.columns["old-slope"] == document.columns["new-slope"]
    assert document.texts["summary"].endswith("of 512 tokens.")


@pytest.mark.parametrize(
    ("fields", "got"),
    [
        ({"position_method": "rope"}, "'rope'"),
        ({"alibi_trainable": "beta"}, "alibi_trainable 'beta'"),
        ({"alibi_scaling": {"type": "linear", "factor": 2.0}}, "'factor': 2.0"),
    ],
)
def test_a_config_without_fixed_slopes_is_refused(fields: dict[str, object], got: str) -> None:
    with pytest.raises(ValueError, match=f"expected .*{re.escape(got)}"):
        state_of_config(AlibiGPTConfig(num_attention_heads=6, hidden_size=192, **fields))
