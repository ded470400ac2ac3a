"""The explorer as a Space: its variable ``MODELS`` names none, one or two models of the Hub, separated by a space."""

import os

from huggingface_hub import snapshot_download

from modeling_alibi_gpt.explorer.app import CSS, THEME, build_app, load_subjects


names = os.environ.get("MODELS", "").split()
page = build_app(load_subjects([snapshot_download(name, local_dir=f"models/{name}") for name in names]))

if __name__ == "__main__":
    page.launch(theme=THEME, css=CSS)
