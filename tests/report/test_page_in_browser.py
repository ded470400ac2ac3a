"""The report in a real browser: it fits a phone, follows the color scheme, and its points tell their values."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb

from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.report.svg import DARK_COLORS
from tests.support.browser import Document, dump_page, needs_browser
from tests.support.example_records import demo_records, extrapolation_record


WIDTHS = (390, 1280)
MIN_CONTRAST = 3.0  # of graphics, by WCAG 2.1, 1.4.11


def luminance(color: str) -> float:
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = build_report(demo_records(), tmp_path_factory.mktemp("report"), title="Demo")
    return Path(paths["html"])


def measured(page: Path, folder: Path, script: str, *options: str) -> Any:
    """What a script returns of the page's document in a frame of each width, for windows have a least width."""
    html = json.dumps(page.read_text(encoding="utf-8")).replace("</", r"<\/")
    frames = f"""<body><pre id="found"></pre><script>
    const html = {html};
    const measure = (document) => {{ {script} }};
    const found = {{}};
    for (const width of {json.dumps(WIDTHS)}) {{
      const frame = document.createElement("iframe");
      frame.style.cssText = `width:${{width}}px;height:800px;border:0`;
      frame.srcdoc = html;
      frame.onload = () => {{
        found[width] = measure(frame.contentDocument);
        document.getElementById("found").textContent = JSON.stringify(found);
      }};
      document.body.append(frame);
    }}
    </script></body>"""
    wrapper = folder / "frames.html"
    wrapper.write_text(frames, encoding="utf-8")
    found = json.loads(Document(dump_page(wrapper, "", *options)).texts["found"])
    assert list(found) == [str(width) for width in WIDTHS]
    return found


@needs_browser
def test_nothing_is_wider_than_the_window(page: Path, tmp_path: Path) -> None:
    script = """
    const root = document.documentElement;
    const wide = [...document.querySelectorAll("body *:not(.scroll *):not(svg *)")]
      .filter((each) => each.getBoundingClientRect().right > root.clientWidth + 0.5).map((each) => each.outerHTML);
    const scrolls = [...document.querySelectorAll(".scroll")].map((each) => each.scrollWidth > each.clientWidth);
    return { overflow: root.scrollWidth - root.clientWidth, wide, scrolls: scrolls.some(Boolean) };
    """
    found = measured(page, tmp_path, script)
    for width in WIDTHS:
        assert found[str(width)]["overflow"] == 0 and found[str(width)]["wide"] == []
    assert found["390"]["scrolls"], "wide tables scroll in their frames"


@needs_browser
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_page_and_figures_follow_the_color_scheme(page: Path, tmp_path: Path, scheme: str) -> None:
    script = """
    const style = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
    return { paper: style("body", "backgroundColor"), ink: style("body", "color"), axis: style("svg text", "fill") };
    """
    option = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    for found in measured(page, tmp_path, script, option).values():
        paper, ink, axis = (tuple(map(int, re.findall(r"\d+", found[name]))) for name in ("paper", "ink", "axis"))
        assert (sum(paper) < sum(ink)) == (scheme == "dark") and axis == ink


@needs_browser
def test_a_point_shows_its_values_when_it_has_the_focus(page: Path, tmp_path: Path) -> None:
    script = """
    const points = [...document.querySelectorAll("#section-2 .point")];
    const point = points.find((each) => each.textContent.startsWith("alibi:") && each.textContent.endsWith(" 2,048"));
    const tip = point.querySelector(".tip"), before = getComputedStyle(tip).visibility;
    point.focus();
    return { before, after: getComputedStyle(tip).visibility, text: tip.textContent };
    """
    perplexity = extrapolation_record("alibi", "nonoverlapping", 2048)["perplexity"]
    expected = {"before": "hidden", "after": "visible", "text": f"alibi: {perplexity:.4g} at 2,048"}
    assert measured(page, tmp_path, script)["390"] == expected


def test_every_color_of_a_figure_can_be_seen_on_a_dark_page(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    in_dark = html.partition("prefers-color-scheme: dark")[2].partition("</style>")[0]
    changed = dict(re.findall(r"--c-([0-9a-f]{6}): (#[0-9a-f]{6})", in_dark))
    assert len(changed) == len(DARK_COLORS)
    (paper,) = re.findall(r"--paper: (#[0-9a-f]{6})", in_dark)
    # Grid lines, veils behind texts and the inside of points are no marks.
    drawn = set(re.findall(r"(?:stroke|fill): var\(--c-([0-9a-f]{6})", html)) - {"ececec", "ffffff"}
    assert len(drawn) > 5 and {"ececec", "ffffff"} <= set(changed)
    too_dark = [color for color in drawn if contrast(changed.get(color, f"#{color}"), paper) < MIN_CONTRAST]
    assert too_dark == []
