"""Claims on position methods, a function each: what one comparison says of it, or nothing where it cannot speak."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from modeling_alibi_gpt.reporting.grid import Grid, format_mean, listed, paired
from modeling_alibi_gpt.reporting.statistics import Difference, Finding, judge, judge_any
from modeling_alibi_gpt.reporting.tables import format_count


RIVALS = {"sinusoidal": "sinusoidal", "rope": "RoPE", "t5": "T5"}
MAX_NAMES = 3
EXTENSIONS = {"linear": "linear interpolation", "ntk": "NTK", "dynamic_ntk": "dynamic NTK", "yarn": "YaRN"}


def _reads_on(grid: Grid) -> list[Finding]:
    change = _change(grid, grid.alibi)
    if change is None:
        return []
    claim = "Trained on short text, ALiBi reads far longer text no worse (its paper, section 4)"
    return [Finding(claim, judge([_rise(change)], -1), f"{format_mean(change)} {grid.reach} tokens")]


def _uses_distant_text(grid: Grid) -> list[Finding]:
    change = _change(grid, grid.alibi)
    if change is None or grid.main_protocol != "sliding":
        return []
    numbers = f"{format_mean(change)} {grid.reach} tokens"
    if "nonoverlapping" in grid.protocols:
        whole = grid.change(str(grid.alibi), "nonoverlapping", grid.lengths[-1])
        assert whole is not None  # where it can be read with sliding windows
        numbers += f"; non-overlapping {format_mean(whole)}, where fewer tokens stand near the start of a window"
    return [Finding("It makes use of text beyond the training length", judge([change.sign], -1), numbers)]


def _no_worse_where_trained(grid: Grid) -> list[Finding]:
    length = grid.lengths[0]
    differences = _against_alibi(grid, [v for v in grid.variants if grid.method(v) in RIVALS], length)
    if not differences:
        return []
    verdict = judge([difference.sign for difference in differences.values()], 1)
    claim = f"Where all were trained it is no worse than {_rivals(grid, differences)}"
    return [Finding(claim, verdict, f"{listed(differences)} against it at {format_count(length)} tokens")]


def _rivals_fail(grid: Grid) -> list[Finding]:
    changes = _changes(grid, [variant for variant in grid.variants if grid.method(variant) in RIVALS])
    if not changes:
        return []
    rivals = _rivals(grid, changes)
    claim = f"{rivals[0].upper()}{rivals[1:]} read{'s' if len(changes) == 1 else ''} far longer text worse"
    verdict = judge([change.sign for change in changes.values()], 1)
    return [Finding(claim, verdict, f"{listed(changes)} {grid.reach} tokens")]


def _alone_stays_level(grid: Grid) -> list[Finding]:
    own, others = _change(grid, grid.alibi), _changes(grid, _other_methods(grid))
    if own is None or not others:
        return []
    closest = dict(sorted(others.items(), key=lambda item: item[1].mean)[:3])
    signs = [-_rise(own), *map(_rise, others.values())]
    numbers = f"{format_mean(own)}, lowest of the others {listed(closest)} {grid.reach} tokens"
    return [Finding(f"Of {_ran(others)}, ALiBi alone stays level", judge(signs, 1), numbers)]


def _nothing_is_better(grid: Grid) -> list[Finding]:
    differences = _against_alibi(grid, _other_methods(grid), grid.lengths[-1])
    if not differences:
        return []
    lowest = dict(sorted(differences.items(), key=lambda item: item[1].mean)[:3])
    numbers = f"lowest {listed(lowest)} against it at {format_count(grid.lengths[-1])} tokens"
    verdict = judge([difference.sign for difference in differences.values()], 1)
    claim = f"Of {_ran(differences)}, none reads better than ALiBi far out"
    return [Finding(claim, verdict, numbers)]


def _flatter_slopes_help(grid: Grid) -> list[Finding]:
    if grid.alibi is None:
        return []
    gains: dict[str, Difference] = {}
    for reading in _readings(grid, grid.alibi, "alibi_scaling"):
        for length in grid.lengths[1:]:
            gain = grid.difference(grid.alibi, grid.main_protocol, length, reading, against=grid.alibi)
            gains |= {f"{reading} at {format_count(length)} tokens": gain} if gain is not None else {}
    if not gains:
        return []
    best, gain = min(gains.items(), key=lambda item: item[1].mean)
    verdict = judge_any([gain.sign for gain in gains.values()], -1)
    claim = "Slopes made flatter at inference help it beyond the training length"
    return [Finding(claim, verdict, f"at best {format_mean(gain)}, {best}")]


def _rope_is_extended(grid: Grid) -> list[Finding]:
    """Each extension at the length that its factor is for, dynamic ones at the longest."""
    near, protocol = grid.lengths[0], grid.main_protocol
    changes: dict[tuple[str, str, int], Difference] = {}
    kinds: dict[str, None] = {}
    for variant in (variant for variant in grid.variants if grid.method(variant) == "rope"):
        for reading in _readings(grid, variant, "rope_extension"):
            cells = {length: grid.cell(variant, protocol, length, reading) for length in grid.lengths}
            extension = cells[near]["reading_fields"]["rope_extension"]
            factor = extension.get("factor")
            length = max(n for n in grid.lengths if factor is None or n <= factor * near)
            change = paired(cells[length], grid.cell(variant, protocol, near))
            if change is not None:
                changes[variant, reading, length] = change
                kinds[EXTENSIONS[extension["type"]]] = None
    if not changes:
        return []
    (variant, best, length), change = min(changes.items(), key=lambda item: item[1].mean)
    numbers = f"at best {best} {format_mean(change)} at {format_count(length)} tokens"
    trained = grid.change(variant, protocol, length)
    if trained is not None:
        numbers += f", where RoPE as trained stands {format_mean(trained)}"
    claim = f"{_joined(list(kinds), 'or')}, without fine-tuning, lets RoPE read as far as it is set for no worse"
    return [Finding(claim[0].upper() + claim[1:], judge_any(map(_rise, changes.values()), -1), numbers)]


# Its paper is Press, Smith and Lewis 2022, arXiv:2108.12409.
METHOD_CLAIMS: tuple[Callable[[Grid], list[Finding]], ...] = (
    _reads_on,
    _uses_distant_text,
    _no_worse_where_trained,
    _rivals_fail,
    _alone_stays_level,
    _nothing_is_better,
    _flatter_slopes_help,
    _rope_is_extended,
)


def _rise(change: Difference) -> int:
    """1 where a change is shown to rise, -1 where it is shown to stay level or to fall, else 0."""
    return 1 if change.sign > 0 else -int(change.is_level)


def _change(grid: Grid, variant: str | None) -> Difference | None:
    return None if variant is None else grid.change(variant, grid.main_protocol, grid.lengths[-1])


def _changes(grid: Grid, variants: Iterable[str]) -> dict[str, Difference]:
    """From the shortest length to the longest, of those variants that can be read there."""
    return {variant: change for variant in variants if (change := _change(grid, variant)) is not None}


def _against_alibi(grid: Grid, variants: Iterable[str], length: int) -> dict[str, Difference]:
    """Nats above ALiBi, of those variants that can be read at ``length``; none where ALiBi was not trained."""
    if grid.alibi is None:
        return {}
    found = {v: grid.difference(v, grid.main_protocol, length, against=grid.alibi) for v in variants}
    return {variant: difference for variant, difference in found.items() if difference is not None}


def _other_methods(grid: Grid) -> list[str]:
    return [variant for variant in grid.variants if grid.method(variant) != "alibi"]


def _readings(grid: Grid, variant: str, field: str) -> list[str]:
    """The readings of a variant that set ``field``."""
    found = [r["reading"] for r in grid.records if r["variant"] == variant and field in r["reading_fields"]]
    return list(dict.fromkeys(found))


def _ran(others: Mapping[str, Difference]) -> str:
    """ALiBi and what it is judged with: by name where they are few."""
    return _joined(["ALiBi", *others], "and") if len(others) <= MAX_NAMES else f"{len(others) + 1} methods"


def _rivals(grid: Grid, variants: Iterable[str]) -> str:
    return _joined(list(dict.fromkeys(RIVALS[grid.method(variant)] for variant in variants)), "and")


def _joined(words: Sequence[str], conjunction: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}"
