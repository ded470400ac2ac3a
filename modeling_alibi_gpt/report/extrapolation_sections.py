"""The sections about perplexity against length: one for each text, then the loss by position."""

import pandas as pd

from modeling_alibi_gpt.report.frames import Frames, by_text, distinct_names, has_several_streams
from modeling_alibi_gpt.report.page import Picture, Section, make_section
from modeling_alibi_gpt.report.plots import extrapolation_figure, position_figure
from modeling_alibi_gpt.report.tables import bits_table, extrapolation_table


TEMPLATE = "sections.j2"


def extrapolation_sections(by_kind: Frames) -> list[Section]:
    """Perplexity against length and loss by position of the models that belong to no comparison."""
    return [section for text, rows in by_text(by_kind["extrapolation"]) for section in _sections_of_text(text, rows)]


def _sections_of_text(text: str, rows: pd.DataFrame) -> list[Section]:
    every = distinct_names(rows)
    frame = every.drop_duplicates(["name", "protocol", "length_tokens"], keep="last")
    measured = frame[frame["error"].isna()]
    alt = "Perplexity against sequence length for each model and protocol"
    pictures = [Picture("extrapolation.png", extrapolation_figure(frame), alt)] if len(measured) else []
    tables, has_tokenizers = [extrapolation_table(frame)], has_several_streams(measured)
    if has_tokenizers:
        tables.append(bits_table(measured))
    values = {"text": text, "num_repeated": len(every) - len(frame), "has_tokenizers": has_tokenizers}
    sections = [make_section(TEMPLATE, "extrapolation", pictures=pictures, tables=tables, **values)]
    return sections + _position_sections(measured[measured["nats_by_position"].notna()])


def _position_sections(located: pd.DataFrame) -> list[Section]:
    """Each model at its longest length without an error, from non-overlapping windows if available."""
    if located.empty:
        return []
    ordered = located.assign(is_whole=located["protocol"] == "nonoverlapping")
    ordered = ordered.sort_values(["is_whole", "length_tokens"], kind="stable")
    longest = ordered.groupby("name", sort=False).tail(1)
    picture = Picture("loss_by_position.png", position_figure(longest), "Nats per token against position, by model")
    return [make_section(TEMPLATE, "positions", pictures=[picture])]
