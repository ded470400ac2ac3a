"""Shared code of commands that measure models row by row: settings, rows as they finish, the table, the result."""

from collections.abc import Callable, Sequence
from typing import Any

from alibi_gpt_cli.console import print_result


Row = dict[str, Any]


def measure_grid(
    config_class: type[Any],
    run: Callable[..., list[Row]],
    *,
    config: str | None,
    settings: Sequence[str] | None,
    named: dict[str, Any],
    trust_remote_code: bool,
    describe_row: Callable[[Row], str],
    table: Callable[[list[Row]], Any],
    fields_in_short: Sequence[str],
    as_json: bool,
    title: str = "",
) -> None:
    """Measure a grid, and print its rows, its table and its result.

    Args:
        config_class: Settings of the grid; has ``output``.
        run: Measures it; takes the settings and ``on_row``.
        config: Path of the settings.
        settings: ``a.b=value`` assignments, which override the file.
        named: Settings that have their own option; None keeps the file's value.
        trust_remote_code: Whether the Python code of a checkpoint may run.
        describe_row: Formats a row as one line.
        table: Makes a table of all rows.
        fields_in_short: Fields of a row that the result contains.
        as_json: Whether to print the result.
        title: What the table shows, if its rows do not say it.
    """
    from tqdm.auto import tqdm

    from modeling_alibi_gpt.report.tables import table_text
    from modeling_alibi_gpt.runtime.config import load_config
    from modeling_alibi_gpt.runtime.distributed import process_state
    from modeling_alibi_gpt.runtime.remote_code import trusting_remote_code

    grid = load_config(config_class, config, settings or (), **named)
    with trusting_remote_code(trust_remote_code):
        rows = run(grid, on_row=lambda row: tqdm.write(describe_row(row)))
    heading = f"\n{title}" if title else ""
    process_state().print(f"{heading}\n{table_text(table(rows))}\nrecords in {grid.output}")
    in_short = [{field: row[field] for field in fields_in_short} for row in rows]
    print_result({"output": grid.output, "num_rows": len(rows), "rows": in_short}, as_json)
