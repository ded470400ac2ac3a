"""``alibi-gpt explore``."""

from pathlib import Path
from typing import Annotated

import typer

from alibi_gpt_cli.options import TrustRemoteCode


def explore(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Checkpoint folders.")] = None,
    static: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="Write one page that works offline, and exit.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 by default.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show slopes, biases and windows in the browser, and how one or two checkpoints process a text.

    Needs the extra 'explore', except with --static.

    alibi-gpt explore --static explorer.html

    alibi-gpt explore runs/demo/alibi runs/demo/rope
    """
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    with trusting_remote_code(trust_remote_code):
        if static is not None:
            _write_static_page(static, models or [])
            return
        from modeling_alibi_gpt.explorer.app import CSS, THEME, build_app, load_subjects

        app = build_app(load_subjects(models or []))
    app.launch(server_name=host, server_port=port, inbrowser=browser, theme=THEME, css=CSS, footer_links=[])


def _write_static_page(path: str, models: list[str]) -> None:
    """Raise ``ValueError`` for several models, or for a model whose config does not determine its slopes."""
    from modeling_alibi_gpt.checkpoints.load import load_model_config
    from modeling_alibi_gpt.explorer.static_page import render_static_page, state_of_config
    from modeling_alibi_gpt.runtime.atomic import write_text

    if len(models) > 1:
        raise ValueError(f"a static page shows one model, got {len(models)}")
    page = render_static_page(state_of_config(load_model_config(models[0])) if models else None)
    write_text(Path(path), page)
    print(f"{len(page.encode('utf-8')):,} bytes: open {path}")
