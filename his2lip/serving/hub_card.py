"""The model card of a checkpoint, in Hugging Face's format."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from his2lip.data.images import LEAST_TISSUE
from his2lip.data.shards import origin_of
from his2lip.evaluation import DRAWS, CellResult, Estimate, TaskCell, TaskRow
from his2lip.models import BACKBONES, origins, terms_of_use
from his2lip.serving.calibration import Calibration
from his2lip.serving.familiarity import Familiarity
from his2lip.serving.gates import MOST_SCALE
from his2lip.serving.history import TrainingHistory

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"  # the file beside the weights
_TASK = "zero-shot-image-classification"
_FIGURES = {"f1": "macro_f1", "accuracy": "accuracy", "chance_corrected": "chance_corrected"}
_TITLES = {
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "chance_corrected": "chance-corrected balanced accuracy",
}
_RANKED = {
    "recall_at_1": "recall at 1",
    "recall_at_5": "recall at 5",
    "recall_at_10": "recall at 10",
    "mean_average_precision": "mAP",
    "median_rank": "median rank",
}
_BASES = {
    "published": "as published",
    "inferred": "inferred from what is published",
    "ours": "defined by his2lip",
}
_CALIBRATED = {"ece": "error", "brier": "Brier score", "nll": "log loss (nats)", "slope": "slope"}
_CHOSEN_ON = (
    "Models are chosen by their figures on `select` splits, so that there the figure of a chosen model is\n"
    "too high on average."
)
_MOST_LETTERS = 5000  # of a description in MLflow's registry
_SECTION = "\n## "
_GATES, _CALIBRATION, _LOADING = "What it does not answer", "Calibration", "How to load it"
_OF_THE_CHECKPOINT = (_GATES, _CALIBRATION)  # sections about files that only a checkpoint has
_NOT_EXPORTED = (
    "This is of the checkpoint from which this folder was exported for transformers. The calibrations and\n"
    "the limit of familiarity are not in this folder."
)
_LOAD = """In this folder:

```python
import open_clip; model = open_clip.create_model("local-dir:.")
from his2lip import load_model; model = load_model(".")
```"""
_LOAD_TRANSFORMERS = """In this folder:

```python
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
model, processor = CLIPModel.from_pretrained("."), CLIPImageProcessor.from_pretrained(".")
tokenizer = CLIPTokenizer.from_pretrained("openai/clip-vit-base-patch32")
```"""


@dataclass(frozen=True, kw_only=True)
class MeanFigure:
    """The mean of chance-corrected balanced accuracy over the datasets of one benchmark.

    roles  of the splits that it scored
    """

    benchmark: str
    datasets: int
    mean: float
    limits: tuple[float, float] | None
    roles: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class CardFigures:
    """The grid cells of a checkpoint, each once, their means, and the benchmarks that could not be read.

    tasks  the grid cells of retrieval and robustness
    """

    cells: Sequence[CellResult]
    means: Sequence[MeanFigure]
    tasks: Sequence[TaskCell] = ()
    unread: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What the card of a checkpoint says.

    name    the name of the model; source: what loads it here
    meta    the contents of its his2lip.json
    chosen  how it was chosen among others
    """

    name: str
    source: str
    meta: Mapping[str, Any]
    figures: CardFigures
    calibrations: Sequence[Calibration]
    familiarity: Familiarity | None
    chosen: str | None = None


def model_card(content: CardContent) -> str:
    """The text of README.md: front matter with `model-index`, then the sections."""
    from huggingface_hub import ModelCardData

    front = ModelCardData(
        model_name=content.name,
        license="other",  # the terms are inherited, and no licence follows from them
        library_name="open_clip",
        pipeline_tag=_TASK,
        language="en",
        tags=["clip", "pathology", "immunohistochemistry", "research-use-only"],
        base_model=_hub_names(content) or None,
        eval_results=[result for cell in content.figures.cells for result in _results(cell)] or None,
    )
    sections = {
        "Intended use": _use(),
        "Licence and terms": _terms(content),
        "Figures": _figures(content),
        "Retrieval": _retrieval(content),
        "Known failures": _failures(content),
        _GATES: _gates(content),
        "Training data": _data(content),
        "Protocols": _protocols(content),
        _CALIBRATION: _calibrations(content),
        _LOADING: _LOAD,
        "Identity": _identity(content),
    }
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items() if text)
    return f"---\n{front.to_yaml()}\n---\n\n# {content.name}\n\n{body}"


def card_description(card: str) -> str:
    """The sections of a card that fit into a description of MLflow's registry, without its front matter."""
    head, *sections = card.split("\n---\n", 1)[1].strip().split(_SECTION)
    rest = f"\n\nThe whole model card is {CARD} beside the weights."
    text = head
    for section in sections:
        if len(text) + len(_SECTION) + len(section) + len(rest) > _MOST_LETTERS:
            break
        text += _SECTION + section
    return text + rest


def card_for_transformers(card: str) -> str:
    """The same card for an export that transformers loads, which has no calibrations and no limit."""
    head, *sections = card.replace("\nlibrary_name: open_clip\n", "\nlibrary_name: transformers\n", 1).split(
        _SECTION
    )
    for place, section in enumerate(sections):
        title, _, text = section.partition("\n\n")
        if title == _LOADING:
            text = f"{_LOAD_TRANSFORMERS}\n"
        elif title in _OF_THE_CHECKPOINT:
            text = f"{_NOT_EXPORTED}\n\n{text}"
        sections[place] = f"{title}\n\n{text}"
    return _SECTION.join([head, *sections])


def _results(cell: CellResult) -> Iterator[EvalResult]:
    """The figures of a grid cell as entries of `model-index`, each with its n and interval."""
    from huggingface_hub import EvalResult

    base = {"n": cell.n, "clusters": cell.clusters, "cluster_kind": cell.cluster_kind}
    for kind, name in _FIGURES.items():
        limits = cell.interval(name)
        interval = (
            {"no_interval": cell.no_interval or "no cluster changes the figure"}
            if limits is None
            else {"interval_95": list(limits)}
        )
        yield EvalResult(
            task_type=_TASK,
            dataset_type=cell.dataset,
            dataset_name=cell.scored_as,
            dataset_config=cell.protocol,
            dataset_split=cell.split,
            dataset_revision=cell.split_sha256,
            dataset_args={"role": cell.role, "generated": cell.generated, "in_domain": cell.in_domain},
            metric_type=kind,
            metric_name=_TITLES[name],
            metric_value=getattr(cell, name),
            metric_args=base | interval,
        )


def _use() -> str:
    return (
        "Research on immunohistochemistry patches: zero-shot classification of tissue types and staining,\n"
        "and retrieval. **Not for diagnosis**, not for decisions about patients, and not a medical device.\n"
        "Stains other than immunohistochemistry, and whole slides without tiling, are out of scope."
    )


def _terms(content: CardContent) -> str:
    known = terms_of_use(content.source, content.meta)
    lines = [
        "No licence is stated for these weights (`license: other`). What they inherit:",
        "",
        *(f"- {_plain(term)}" for term in known),
    ]
    return "\n".join(lines)


def _figures(content: CardContent) -> str:
    unread = [f"The results of {_plain(name)} could not be read." for name in content.figures.unread]
    if not content.figures.cells:
        return "\n\n".join(["No benchmark of these weights was found, so the card has no figures.", *unread])
    lines = [
        "In percent, with the 95 % interval (jackknife over cases, else slides, else files; Student's t).",
        "Chance-corrected balanced accuracy is 0 at chance and 100 if perfect.",
        "",
        *_head(["dataset"], _TITLES.values()),
    ]
    for cell in content.figures.cells:
        shown = [_shown(getattr(cell, name), cell.interval(name)) for name in _TITLES]
        place = f"{cell.split} ({cell.role}{', in-domain' if cell.in_domain else ''})"
        lines.append("| " + " | ".join([_plain(cell.scored_as), *shown, cell.size, place]) + " |")
    if any(cell.generated for cell in content.figures.cells):
        lines += [
            "",
            "Names with `-generated` are generated twins, which say nothing about the real datasets.",
        ]
    if any(cell.role == "select" for cell in content.figures.cells):
        lines += ["", _CHOSEN_ON]
    reasons = {cell.scored_as: cell.no_interval for cell in content.figures.cells if cell.no_interval}
    notes = [f"- {_plain(name)}: no interval, {_plain(reason)}" for name, reason in reasons.items()]
    means = [
        f"- mean of {_TITLES['chance_corrected']} over the {found.datasets} zero-shot datasets of "
        f"{_plain(found.benchmark)} ({', '.join(found.roles)} splits): {_shown(found.mean, found.limits)}"
        for found in content.figures.means
    ]
    chosen = [] if content.chosen is None else [f"- {_plain(content.chosen)}"]
    return "\n".join([*lines, "", *notes, *means, *chosen, *unread]).rstrip()


def _head(names: Sequence[str], figures: Collection[str]) -> list[str]:
    """The head of a table: text, figures, and what they rest on."""
    return [
        f"| {' | '.join([*names, *figures, 'base', 'split'])} |",
        "|" + " --- |" * len(names) + " ---: |" * len(figures) + " --- | --- |",
    ]


def _retrieval(content: CardContent) -> str:
    """The figures of every direction beside those of a random order; empty without any."""
    tasks = [task for task in content.figures.tasks if task.task == "retrieval"]
    if not tasks:
        return ""
    lines = [
        "Images and held-out captions search each other: recall and mAP in percent, with the 95 % interval,",
        "and what a random order gives (chance). Figures compare only for galleries of the same size.",
        "",
        *_head(["dataset", "search, relevant if the same"], _RANKED.values()),
    ]
    for task in tasks:
        place = f"{task.split} ({task.role}{', in-domain' if task.in_domain else ''})"
        for row in task.rows:
            shown = [f"{row.figures[name]}; chance {row.figures[f'{name}_chance']}" for name in _RANKED]
            lines.append("| " + " | ".join([_named(task), _plain(row.name), *shown, row.size, place]) + " |")
    reasons = {
        f"- {_named(task)}, {_plain(row.name)}: no interval, {_plain(row.no_interval)}": None
        for task in tasks
        for row in task.rows
        if row.no_interval
    }
    caveats = [f"- {_named(task)}: {_plain(task.caveat)}" for task in tasks if task.caveat]
    return "\n".join([*lines, "", *reasons, *caveats]).rstrip()


def _named(task: TaskCell) -> str:
    return _plain(origin_of(task.dataset, generated=task.generated))


def _failures(content: CardContent) -> str:
    lines = []
    for cell in content.figures.cells:
        own = [text for text in (_at_chance(cell), _worst(cell), *_marks(cell)) if text is not None]
        lines.append(f"- {_plain(cell.scored_as)}: " + "; ".join(map(_plain, own)))
    lines += [
        f"- {_named(task)}, {_plain(text)}"
        for task in content.figures.tasks
        if task.task == "robustness"
        for text in _drops(task)
    ]
    return "\n".join(lines) or "None is known: no benchmark of these weights was found."


def _drops(task: TaskCell) -> Iterator[str]:
    """By perturbation, the largest of the drops of macro F1 that their intervals tell from none."""
    clean, *perturbed = task.rows
    worst: dict[str, tuple[TaskRow, Estimate]] = {}
    for row in perturbed:
        drop, kind = row.figures["drop"], row.setting["perturbation"]
        known = worst.get(kind)
        if drop.value is None or (drop.lo if drop.lo is not None else drop.value) <= 0:
            continue
        if known is None or drop.value > (known[1].value or 0.0):
            worst[kind] = row, drop
    for kind, (row, drop) in worst.items():
        change = f"{kind} at level {row.setting['level']}"
        points = f"{drop} points" if drop.lo is not None else f"{drop} points (no interval)"
        before = f"{clean.figures['macro_f1']} ({row.size})"
        yield f"images changed by {change}: macro F1 falls by {points}, from {before}"
    if task.caveat:
        yield f"changed images: {task.caveat}"


def _at_chance(cell: CellResult) -> str | None:
    """How a figure compares with chance, where its interval does not show that it is above it."""
    value, limits = cell.chance_corrected, cell.interval("chance_corrected")
    if value is None:
        return None
    if limits is None and cell.no_interval is None and value >= 1:
        # Every case agrees, so that the jackknife has no error to measure; nothing was tested against chance.
        return (
            f"all units are right, so that no case changes the figure, and it has no interval ({cell.size})"
        )
    if limits is None:
        what = "is not shown to be better than chance"
    elif limits[0] > 0:
        return None
    else:
        what = "is worse than chance" if limits[1] < 0 else "cannot be told from chance"
    return f"{what} (chance-corrected {_shown(value, limits)}, {cell.size})"


def _worst(cell: CellResult) -> str | None:
    """The class with the smallest recall, as counts of units."""
    seen = {name: figures for name, figures in cell.per_class.items() if figures.support}
    if not seen:
        return None
    name = min(seen, key=lambda one: seen[one].recall or 0.0)
    place = cell.classes.index(name)
    found = f"{cell.confusion[place][place]} of {seen[name].support} units"
    return f"worst class '{name}': {found} are recognised"


def _marks(cell: CellResult) -> Iterator[str]:
    if cell.order_depends_on_prompts:
        share = (
            ""
            if cell.prompt_order_least is None
            else f" ({100 * cell.prompt_order_least:.0f} % of {DRAWS} draws keep it)"
        )
        yield f"its order with another model depends on the prompts{share}"
    if cell.empty_classes:
        yield f"no unit of {', '.join(cell.empty_classes)}, which count as 0 in macro F1"
    for note in (cell.overlap_note, cell.repeated_note, cell.cut_note, cell.seen_note, cell.caveat):
        if note:
            yield note


def _gates(content: CardContent) -> str:
    limit = content.familiarity
    far = (
        "- no limit of familiarity was fitted, so images unlike the training patches are answered too"
        if limit is None
        else f"- images that are farther from the training patches than a limit: {limit}"
    )
    return "\n".join(
        [
            '`his2lip classify` and the served model answer "not answered", with the reason, for',
            "",
            f"- images that show less than {100 * LEAST_TISSUE:.0f} % tissue",
            "- images that look stained with haematoxylin and eosin, where a biomarker is asked for, "
            "or where the model was trained on other stains only",
            f"- images that are read at more than {MOST_SCALE:g} times, or at less than 1/{MOST_SCALE:g} of, "
            "the scale of the training patches",
            far,
        ]
    )


def _data(content: CardContent) -> str:
    history = TrainingHistory.of(content.source, content.meta)
    lines = [f"{_plain(history.datasets)}."]
    for data in history.data:
        organs = ", ".join(data.organs) or "not recorded"
        counts = [
            f"{kind} {', '.join(f'{k} ({n:,})' for k, n in found.items()) or 'not recorded'}"
            for kind, found in (
                ("stains:", data.stains),
                ("tissue types:", data.tissues),
                ("biomarkers:", data.biomarkers),
            )
        ]
        lines.append(
            f"- {data.title}, split {data.split}, {data.patches:,} patches; organs: {organs}; "
            + "; ".join(counts)
        )
    if any(data.generated for data in history.data):
        lines += ["", "**Generated patches are not real**: figures on real images do not follow from them."]
    return "\n".join([lines[0], "", *map(str, lines[1:])]).rstrip()


def _protocols(content: CardContent) -> str:
    lines = []
    for cell in content.figures.cells:
        parts = [
            f"protocol {cell.protocol}, version {cell.protocol_version}, {_BASES[cell.basis]}",
            f"classes {', '.join(cell.classes)}",
            "in-domain" if cell.in_domain else "zero-shot",
            f"sha256 of prompts {(cell.prompts_sha256 or 'none')[:12]}, of units {cell.split_sha256[:12]}",
        ]
        lines.append(f"- {_plain(cell.scored_as)}: {_plain('; '.join(parts))}")
    if not lines:
        return "No benchmark of these weights was found."
    where = "View, prompts, pooling and scoring of each are in `benchmarks/datasets/NAME.yaml` of his2lip."
    return "\n".join([where, "", *lines])


def _calibrations(content: CardContent) -> str:
    stored = [
        f"- {_plain(found.question)}: temperature {found.temperature:.4g}, fitted on {_plain(str(found))}"
        for found in content.calibrations
    ] or ["Not calibrated: similarities are not probabilities."]
    cells = [cell for cell in content.figures.cells if cell.calibration is not None]
    if not cells:
        return "\n".join(stored)
    return "\n".join(
        [
            *stored,
            "",
            "Measured on scored units, each with a temperature of its own that was fitted to other cases and",
            "is not stored with the model (error in percent, debiased; slope below 1: too confident):",
            "",
            *(f"- {_plain(cell.scored_as)}: {_plain(_measured(cell))}" for cell in cells),
        ]
    )


def _measured(cell: CellResult) -> str:
    """The calibration figures of a grid cell with their base."""
    found = cell.calibration
    assert found is not None, "only calibrated grid cells are listed"
    shown = ", ".join(f"{title} {found.figures[name]}" for name, title in _CALIBRATED.items())
    fitted = f"temperature {found.temperature:.4g} of {found.fitted_n:,} units of {found.fitted_on}"
    return f"{shown}; {cell.size}; {fitted}"


def _identity(content: CardContent) -> str:
    shown = {
        "tensor_digest": "weights, sha256",
        "data_digest": "training data",
        "step": "step",
        "similarity": "compares by",
        "code_version": "his2lip",
    }
    return "\n".join(
        f"- {title}: {_plain(str(content.meta[key]))}" for key, title in shown.items() if key in content.meta
    )


def _hub_names(content: CardContent) -> list[str]:
    """The repositories on the hub from which the weights descend."""
    names = []
    for origin in origins(content.source, content.meta):
        known = BACKBONES.get(origin)
        found = origin.removeprefix("hf-hub:") if origin.startswith("hf-hub:") else known and known.repository
        names += [found] if found else []
    return list(dict.fromkeys(names))


def _shown(value: float, limits: tuple[float, float] | None) -> str:
    """A figure in percent with its interval."""
    interval = "no interval" if limits is None else f"{100 * limits[0]:.1f} to {100 * limits[1]:.1f}"
    return f"{100 * value:.2f} ({interval})"


def _plain(text: str) -> str:
    """Text on one line, without what Markdown or HTML would read in it."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(sign, instead)
    return " ".join(text.split())
