"""Which beta a sweep takes and why, in words."""

from collections.abc import Sequence

from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.statistics import BLOCK_ERROR_NATS, LONE_SEED_NATS, NOISE_NATS, choose_trial
from modeling_alibi_gpt.reporting.tables import BETA, format_perplexity, format_ratio


def describe_choice(trials: Sequence[Record]) -> str:
    """Where the loss of a sweep is lowest, which betas are not told apart from it, by what rule, and which is taken.

    Args:
        trials: ``beta_trial`` records of one study, at least one of them complete.
    """
    chosen = choose_trial(trials)
    assert chosen is not None
    trial, choice = chosen
    lowest = next(other for other in trials if other["beta"] == choice.lowest and other["state"] == "COMPLETE")
    words = f"The lowest mean perplexity is {format_perplexity(lowest['perplexity'])} at {BETA} "
    words += f"{format_ratio(choice.lowest)}. "
    level = ", ".join(map(format_ratio, choice.level))
    if len(choice.level) == 1:
        return f"{words}All others are told apart from it ({noise_of(trial)}); {BETA} {level} is taken."
    return (
        f"{words}Not told apart ({noise_of(trial)}): {BETA} {level}. Of these {format_ratio(choice.taken)} is taken, "
        f"the nearest to 1, with perplexity {format_perplexity(trial['perplexity'])}."
    )


def noise_of(trial: Record) -> str:
    """What a difference from the lowest loss of its study must exceed to count, for a ``beta_trial`` record."""
    if trial["mode"] == "posthoc":
        error = "two standard errors over blocks of the text"
        if trial.get("nats_per_token_by_block") is None:
            error += f", here unknown and taken as {BLOCK_ERROR_NATS} nats each"
        return f"beyond {error}"
    if len(trial["nats_per_token_by_seed"]) == 1:
        return f"beyond {LONE_SEED_NATS} nats, for one seed has no spread"
    return f"beyond {NOISE_NATS} nats and two standard errors over seeds"
