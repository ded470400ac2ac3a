"""``alibi-gpt sweep``."""

from alibi_gpt_cli.console import print_result, show_progress
from alibi_gpt_cli.options import Config, Json, Settings


def sweep(config: Config = None, settings: Settings = None, as_json: Json = False) -> None:
    """Tune beta on validation perplexity.

    To share the trials among workers, start the command several times.

    alibi-gpt sweep --config configs/sweep/beta.yaml --set betas="[0.5, 1, 2]"
    """
    import optuna

    from modeling_alibi_gpt.experiments.sweep import SweepConfig, run_sweep
    from modeling_alibi_gpt.runtime.config import load_config

    show_progress()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    result = run_sweep(load_config(SweepConfig, config, settings or ()))
    _print_trials(result["trials"])
    print(result["choice"])
    if result["best_model"] is None:
        print("the best model is on the machine that trained it: run the command there to get best_model")
    print_result(result, as_json)


def _print_trials(path: str) -> None:
    from modeling_alibi_gpt.report.frames import frames
    from modeling_alibi_gpt.report.tables import beta_table, trained_beta_tables
    from modeling_alibi_gpt.runtime.records import read_records

    for kind, frame in frames(read_records(path)).items():
        table = beta_table(frame) if kind == "beta_trial" else trained_beta_tables(frame)[0]
        print("\n".join("".join(cell.rjust(16) for cell in row) for row in (table.header, *table.rows)), end="\n\n")
