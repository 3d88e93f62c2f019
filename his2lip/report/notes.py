"""What must be known to read the board, one sentence for each fact: the notes of the pages."""

from __future__ import annotations

from his2lip.evaluation import DRAWS, SENTENCES, STABLE, CellResult
from his2lip.report.board import Board, heading, outdated
from his2lip.report.by_dataset import OVERLAP
from his2lip.report.probes import NOTE as PROBES
from his2lip.report.prompt_order import MARK, MARKED, pairs
from his2lip.report.section import Inputs, Section

GENERATED = (
    "Columns marked generated are of generated twins, which only test the benchmark. "
    "Their figures say nothing about the real datasets, and cannot be compared with published figures."
)
INTERVALS = (
    "Intervals are 95 % jackknife intervals over cases (over slides or files where cases are unknown), "
    "with Student's t. They measure what other patients would change, not other prompts or seeds."
)
_MOST_PAIRS = 5  # pairs of models that a note names
UNCHANGED = "no case changes the figure"


def fill(inputs: Inputs) -> Section:
    """Every note on the board."""
    return Section("notes", "Notes", {"notes": notes(inputs.board)})


def notes(board: Board) -> list[str]:
    """The notes, those that concern all figures first."""
    return [
        _domain_note(board),
        *_mean_notes(board),
        *_row_notes(board),
        INTERVALS,
        *([PROBES] if any(cell.is_probe for cell in board.cells) else []),
        *_difference_notes(board),
        *_interval_notes(board),
        *_base_notes(board),
        *_prompt_notes(board),
        *_tie_notes(board),
        *_seen_notes(board),
        *_version_notes(board),
        *_caveat_notes(board),
    ]


def _caveat_notes(board: Board) -> list[str]:
    """What to know before the figures of some rows are compared, each once, with its columns if not all."""
    rows: dict[str, list[CellResult]] = {}
    for cell in board.cells:
        if cell.caveat is not None and not cell.is_few_shot:
            rows.setdefault(cell.caveat, []).append(cell)
    notes = []
    for caveat, cells in rows.items():
        models, columns = dict.fromkeys(c.model for c in cells), dict.fromkeys(map(heading, cells))
        others = {heading(cell) for cell in board.cells if cell.model in models} - columns.keys()
        on = f" on {', '.join(columns)}" if others else ""
        notes.append(f"{', '.join(models)}{on}: {caveat}.")
    return notes


def _difference_notes(board: Board) -> list[str]:
    """What bold figures, differences and the sizes of detectable differences mean."""
    if not any(cell.compared for cell in board.cells):
        return []
    notes = [
        "Bold figures cannot be told from the best of their column, with 95 % confidence for all pairs of "
        "models together (sign flips over cases); expectations such as chance and means over "
        "trainings are left out. The head of a column names the smallest difference of two models that its "
        "cases show with a probability of 80 % (of the median pair, without baselines)."
    ]
    if board.reference is not None and board.margin is not None:
        notes.append(
            f"No loss: the lower limit of the difference from {board.reference} is above "
            f"{-100 * board.margin:g} points; a mean over trainings has no such mark."
        )
    return notes


def _domain_note(board: Board) -> str:
    own = board.in_domain()
    if not own:
        return "No column is in-domain for any model."
    return f"Not in the mean and the rank, because they are in-domain for some models: {', '.join(own)}."


def _mean_notes(board: Board) -> list[str]:
    """Which protocols count in the mean, and which models the mean and the Borda count rank differently."""
    notes = []
    further = [column for column in board.columns if column not in board.counted]
    if further:
        notes.append(
            "A dataset counts once in the mean and the rank, by its protocol default or else by its first "
            f"one. Not counted again: {', '.join(further)}."
        )
    pairs = board.disagreements()
    if pairs:
        shown = "; ".join(f"{a} above {b}" for a, b in pairs[:_MOST_PAIRS])
        more = f"; and {len(pairs) - _MOST_PAIRS} more pairs" if len(pairs) > _MOST_PAIRS else ""
        notes.append(
            f"The mean ranks some models differently than the Borda count, by the mean: {shown}{more}. The "
            "Borda count uses only their order on each dataset, not by how much they differ."
        )
    return notes


def _interval_notes(board: Board) -> list[str]:
    """The columns without intervals, with the reasons."""
    reasons = {heading(cell): cell.no_interval for cell in board.cells if cell.no_interval is not None}
    return [f"{column}: no intervals, because {reason}." for column, reason in reasons.items()]


def _row_notes(board: Board) -> list[str]:
    """The rows whose units the model was trained on, and those whose prompts were cut."""
    cells = [cell for cell in board.cells if cell.overlap_note is not None]
    overlaps = [f"{OVERLAP} {cell.model} on {heading(cell)}: {cell.overlap_note}." for cell in cells]
    cut = [f"{c.model} on {heading(c)}: {c.cut_note}." for c in board.cells if c.cut_note is not None]
    return [*overlaps, *cut]


def _base_notes(board: Board) -> list[str]:
    """Repeated pictures, and classes without a unit: for every model their F1 is 0, which lowers macro F1."""
    repeated = [f"{column}: {note}." for column, note in board.repeated().items()]
    empty = [
        f"{column}: the scored split has no unit of {', '.join(names)}, so their F1 counts as 0 in macro F1."
        for column, names in board.empty_classes().items()
    ]
    return [*repeated, *empty]


def _tie_notes(board: Board) -> list[str]:
    """Where the order of the classes decides, as with one sentence for two classes; not of baselines."""
    found: dict[str, list[str]] = {}
    for cell in board.cells:
        if cell.ties and not cell.is_baseline and not cell.is_few_shot:
            many = f"{cell.model} {cell.ties:,} of {cell.n + cell.apart:,}"
            found.setdefault(heading(cell), []).append(many)
    return [
        f"{column}: units with several classes at the highest score, the first of which is predicted: "
        f"{', '.join(counts)}."
        for column, counts in found.items()
    ]


def _seen_notes(board: Board) -> list[str]:
    """What limits the tissue that models saw of a column, or the scale at which they saw it."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in board.cells:
        if cell.seen_note:
            found.setdefault((heading(cell), cell.seen_note), []).append(cell.model)
    return [f"{column}: {note} ({', '.join(models)})." for (column, note), models in found.items()]


def _version_notes(board: Board) -> list[str]:
    """Columns of an older version of a protocol, and what has changed since."""
    found = {heading(cell): outdated(cell) for cell in board.cells}
    return [
        f"{column}: the protocol has changed since; run the benchmark again to score it by the current "
        f"version. {changes}"
        for column, changes in found.items()
        if changes is not None
    ]


def _prompt_notes(board: Board) -> list[str]:
    """What the mark means, where a figure has it, and the further pools."""
    marked = [pair for pair in pairs(board) if pair.depends_on_prompts]
    names = sorted({name for cell in board.cells for name in cell.prompt_pools})
    notes = []
    if names:
        notes.append(f"Models are compared under the protocol's own prompts and under: {', '.join(names)}.")
    if marked:
        notes.append(
            f"{MARK} {MARKED}: with another model, fewer than {100 * STABLE:g} % of {DRAWS} seeded draws of "
            f"{SENTENCES} sentences per class keep the order of macro F1 ({len(marked)} of "
            f"{len(pairs(board))} pairs; prompt_order.csv has all)."
        )
    return notes
