"""Entry point of ``alibi-gpt``: its commands, and the parsing of the command line."""

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from alibi_gpt_cli.benchmark import benchmark
from alibi_gpt_cli.compare import compare
from alibi_gpt_cli.console import USER_ERROR_EXIT_CODE, ends_in_one_line
from alibi_gpt_cli.context import context
from alibi_gpt_cli.convert import convert
from alibi_gpt_cli.evaluate import evaluate
from alibi_gpt_cli.explore import explore
from alibi_gpt_cli.export import export
from alibi_gpt_cli.extrapolate import extrapolate
from alibi_gpt_cli.generate import generate
from alibi_gpt_cli.init import init
from alibi_gpt_cli.margins import margins
from alibi_gpt_cli.recall import recall
from alibi_gpt_cli.report import report
from alibi_gpt_cli.screen import screen
from alibi_gpt_cli.serve import serve
from alibi_gpt_cli.settings_help import command_with_settings
from alibi_gpt_cli.sweep import sweep
from alibi_gpt_cli.train import train


PROGRAM = "alibi-gpt"
# Options that take several words at once, by command. Typer's options take one word each.
SEVERAL_WORDS = {
    "extrapolate": ("--models", "--lengths"),
    "context": ("--models",),
    "recall": ("--models", "--lengths"),
    "report": ("--records",),
    "screen": ("--records",),
}

app = typer.Typer(
    help="Train, measure and convert language models with ALiBi (Attention with Linear Biases).",
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def add(command: Callable[..., None], **settings: Any) -> None:
    """Make a function a command of ``app``; ``settings`` go to ``typer.Typer.command``."""
    app.command(**settings)(ends_in_one_line(command))


add(train, cls=command_with_settings("experiment", "experiment"))
add(evaluate, cls=command_with_settings("evaluation", "evaluation"))
add(extrapolate, cls=command_with_settings("extrapolation", "evaluation"))
add(context, cls=command_with_settings("context", "evaluation"))
add(recall, cls=command_with_settings("recall", "evaluation"))
add(compare, cls=command_with_settings("comparison", "comparison"))
add(sweep, cls=command_with_settings("sweep", "sweep"))
add(convert, cls=command_with_settings("conversion"))
add(export, cls=command_with_settings("export"))
add(generate, cls=command_with_settings("generation"))
add(margins, cls=command_with_settings("margins"))
add(report, cls=command_with_settings("report"))
add(screen)
add(benchmark, cls=command_with_settings("benchmark", "benchmark"))
add(serve, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
add(explore)
add(init)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"{PROGRAM} {metadata.version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: those of this process) and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every encoding has β, such as cp1252 on Windows
        sys.stdout.reconfigure(errors="backslashreplace")
    words = repeated_options(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    return run_app(app, words, PROGRAM)


def run_app(program: typer.Typer, words: Sequence[str], name: str) -> int:
    """Run an app and return the exit code; a mistyped option gives one line and exit code 2."""
    try:
        return program(list(words), prog_name=name, standalone_mode=False) or 0
    except typer.TyperException as error:  # an unknown option, or a value of another type
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE


def run(command: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command with ``arguments`` (default: those of this process) and return the exit code."""
    return main([command, *(sys.argv[1:] if arguments is None else arguments)])


def repeated_options(words: Iterable[str]) -> list[str]:
    """Rewrite ``--models A B`` as ``--models A --models B``."""
    command, *rest = words or [""]
    option, is_followed, spelled = None, False, []
    for word in rest:
        if word.startswith("-"):
            option, is_followed = (word, False) if word in SEVERAL_WORDS.get(command, ()) else (None, False)
        elif option is not None:
            spelled += [option] if is_followed else []
            is_followed = True
        spelled.append(word)
    return [command, *spelled] if command else []
