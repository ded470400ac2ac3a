"""The settings reference: one Markdown page from the JSON schemas of all commands."""

from alibi_gpt_cli.schemas import SETTINGS
from alibi_gpt_cli.settings_help import setting_rows


INTRODUCTION = """# Settings reference

Each command reads its settings from a YAML or JSON file (`--config`), and `--set KEY=VALUE` changes any of them.
Nested keys are joined by dots: `--set training.seed=1`. An unknown key is an error. This page is generated from
`configs/schema/`.
"""


def settings_reference() -> str:
    """Markdown page with every setting of every command, as ``--help`` lists them."""
    parts = [INTRODUCTION]
    for schema, (command, _) in SETTINGS.items():
        parts += [f"## alibi-gpt {command.__name__}", "", "| key | type | meaning |", "|---|---|---|"]
        for key, kind, meaning in setting_rows(schema):
            parts.append(f"| <code>{key.replace('.', '.<wbr>')}</code> | {_cell(kind)} | {_cell(meaning)} |")
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Text of one table cell, which may hold neither a line break nor a bar."""
    return " ".join(text.split()).replace("|", "\\|")
