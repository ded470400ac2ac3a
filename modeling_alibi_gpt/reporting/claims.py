"""What is said of position methods and of beta, and whether it holds: one table of verdicts."""

from collections.abc import Sequence

from modeling_alibi_gpt.reporting.beta_claims import BETA_CLAIMS
from modeling_alibi_gpt.reporting.grid import Grid
from modeling_alibi_gpt.reporting.method_claims import METHOD_CLAIMS
from modeling_alibi_gpt.reporting.page import Section
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.statistics import LEVEL_NATS, Verdict
from modeling_alibi_gpt.reporting.tables import Table, format_range


def claims_section(grids: Sequence[Grid], trainings: Sequence[Record]) -> list[Section]:
    """One table: a row for every claim that at least one of the comparisons can speak to."""
    parts = [grid.split() for grid in grids]
    found = [
        (part.corpus, finding)
        for of_part, tests in enumerate((METHOD_CLAIMS, BETA_CLAIMS))
        for test in tests
        for part in (split[of_part] for split in parts)
        if part is not None
        for finding in test(part)
    ]
    if not found:
        return []
    rows = []
    for claim in dict.fromkeys(finding.claim for _, finding in found):
        of_claim = [(corpus, finding) for corpus, finding in found if finding.claim == claim]
        evidence = "; ".join(f"{corpus}: {finding.numbers}" for corpus, finding in of_claim)
        rows.append([claim, _in_words([(corpus, finding.verdict) for corpus, finding in of_claim]), evidence])
    spread = max(
        max(record["nats_per_token_by_seed"]) - min(record["nats_per_token_by_seed"])
        for grid in grids
        for record in grid.as_trained
        if record["error"] is None and record["length_tokens"] == grid.lengths[0]
    )
    sentence = (
        f"For models of {format_range(record['num_parameters'] / 1e6 for record in trainings)} million parameters "
        f"after {format_range(record['num_train_tokens'] / 1e6 for record in trainings)} million tokens of training, "
        "with settings that are the same for all. A claim holds, or does not, where differences were detected that "
        f"say so; where none was it is not shown. What stays level is shown to rise by less than {LEVEL_NATS} nats. "
        "Numbers are nats per token, means over seeds, with sliding windows unless said otherwise; which differences "
        f"count is said below. Trainings of one variant lie up to {spread:.2f} nats apart at the training length; "
        "differences are taken within a seed. What larger models and longer trainings do, and how much depends on "
        "the text that was read, was not measured."
    )
    return [Section("What holds", sentence, tables=[Table(["claim", "", "measured"], rows, num_text_columns=3)])]


def _in_words(verdicts: Sequence[tuple[str, Verdict]]) -> str:
    """``holds``, or ``holds on one corpus; not shown on another`` where they differ."""
    corpora = {word: [corpus for corpus, verdict in verdicts if verdict is word] for word in Verdict}
    found = {word.value: where for word, where in corpora.items() if where}
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{word} on {' and '.join(where)}" for word, where in found.items())
