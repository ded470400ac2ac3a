#!/usr/bin/env bash
# Prints the path of a Chromium for the tests of pages: one that is there, else Debian's, else Playwright's, else nothing.
# A machine without a network has none to install, and its tests of pages are skipped.
set -uo pipefail
find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
find_browser && exit

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
log=$(mktemp)
{
    timeout 300 "${as_root[@]}" apt-get update -q && timeout 600 "${as_root[@]}" apt-get install -qy --no-install-recommends chromium
} >"$log" 2>&1 </dev/null && find_browser && exit

venv=${1:-$HOME/.cache/alibi-gpt-playwright}
{
    "${PYTHON:-python3}" -m venv "$venv" && "$venv/bin/pip" install --quiet playwright &&
        timeout 600 "$venv/bin/playwright" install --with-deps chromium
} >>"$log" 2>&1 </dev/null &&
    "$venv/bin/python" -c '
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
' && exit

echo "skipped: the tests of pages in a browser, because no Chromium could be installed; the end of its log:" >&2
tail -n 3 "$log" >&2
