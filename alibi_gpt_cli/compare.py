"""``alibi-gpt compare``."""

from pathlib import Path

from alibi_gpt_cli.console import print_result, show_progress
from alibi_gpt_cli.options import Json, RequiredConfig, Settings


def compare(config: RequiredConfig, settings: Settings = None, as_json: Json = False) -> None:
    """Train the variants of an experiment with the same seeds and measure each at every length.

    The same command resumes a comparison that was stopped. To share the runs among workers, start it several times,
    each with OMP_NUM_THREADS=1.

    alibi-gpt compare --config configs/comparison/methods_gutenberg.yaml
    """
    from modeling_alibi_gpt.experiments.compare import ComparisonConfig, run_comparison
    from modeling_alibi_gpt.report.context_tables import recall_table
    from modeling_alibi_gpt.report.tables import extrapolation_table, table_text
    from modeling_alibi_gpt.runtime.config import load_config

    show_progress()
    comparison = load_config(ComparisonConfig, config, settings or ())
    records = run_comparison(comparison)
    path = Path(comparison.output_dir) / "comparison.jsonl"
    answers = [record for record in records if record["kind"] == "recall"]
    shown = answers or [record for record in records if record["kind"] == "comparison"]
    table = recall_table if answers else extrapolation_table
    names = list(dict.fromkeys(record["comparison"] for record in shown))
    for name in names:
        if len(names) > 1:
            print(f"{name}:")
        print(table_text(table([record for record in shown if record["comparison"] == name])))
    print(f"records in {path}")
    print_result({"records": str(path), "num_records": len(records)}, as_json)
