"""``alibi-gpt serve``."""

import typer


def serve(context: typer.Context) -> None:
    """Serve a model by OpenAI's protocol: 'transformers serve', with AlibiGPT registered.

    Takes the options that 'transformers serve --help' lists. Needs: pip install 'alibi-gpt[serve]'.

    alibi-gpt serve runs/demo/alibi --continuous-batching
    """
    import transformers
    from transformers.cli.transformers import app
    from transformers.utils.import_utils import is_serve_available

    from modeling_alibi_gpt import AlibiGPTForCausalLM

    if not is_serve_available():
        raise ValueError("serving needs packages that are not installed: pip install 'alibi-gpt[serve]'")
    # `serve` looks for the class of a checkpoint among the attributes of transformers, not in its Auto classes.
    transformers.AlibiGPTForCausalLM = AlibiGPTForCausalLM  # type: ignore[attr-defined]
    app(["serve", *context.args])
