"""Load a page in headless Chromium, run its scripts and return the document."""

import os
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome")
# The environment variable names a Chromium that is not on the path, such as Playwright's.
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def dump_page(page: Path, fragment: str = "", *options: str) -> str:
    """The HTML of a local page after its scripts have run, without network."""
    return dump_address(f"{page.resolve().as_uri()}#{fragment}", "--virtual-time-budget=5000", *options)


def dump_address(address: str, *options: str) -> str:
    """The same for an address on this machine; no other host can be reached."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *options, "--dump-dom", address),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


class Document(HTMLParser):
    """The parts of a page that tests check.

    Attributes:
        texts: Text of elements by ``id``, up to the first child element.
        elements: Tag and attributes of every element.
        columns: Values of the cells with ``data-value``, by ``data-name``.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.columns: dict[str, list[float]] = {}
        self._id = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self._id = attributes.get("id") or ""
        if (name := attributes.get("data-name")) is not None:
            self.columns.setdefault(name, []).append(float(attributes["data-value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        self._id = ""

    def handle_data(self, data: str) -> None:
        if self._id:
            self.texts[self._id] = self.texts.get(self._id, "") + data

    def with_id(self, name: str) -> dict[str, str | None]:
        (found,) = [attributes for _, attributes in self.elements if attributes.get("id") == name]
        return found
