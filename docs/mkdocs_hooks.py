"""What the site shows from outside docs/: results, files of the repository that pages link to, and the settings."""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from settings_reference import settings_reference  # noqa: E402

from modeling_alibi_gpt.explorer.static_page import render_static_page  # noqa: E402


PAGES = {"RESULTS.md": "results.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
PAGES["CHANGELOG.md"] = "changelog.md"
LINKED_FILES = ["scripts/gutenberg.csv"]
LINKS = {**PAGES, "configs/schema": "settings.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the notebook, and every record and figure of results/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "settings.md", content=settings_reference()))
    files.append(File.generated(config, "explorer_page.html", content=render_static_page()))
    for path in sorted(path for folder in ("examples", "results") for path in (ROOT / folder).rglob("*.*")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in LINKED_FILES:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links written for the repository as links of the site, where RESULTS.md is the page results.md.

    The site has no pages for folders: a link to one becomes its text.
    """
    markdown = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)#\s]+/\)", r"\1", markdown)

    def target(match: re.Match[str]) -> str:
        path = match[1].removeprefix("../").removeprefix("docs/")
        return f"]({LINKS.get(path, path)}"

    return re.sub(r"\]\(((?!https?:)[^)#\s]+)", target, markdown)
