"""The model card: Hugging Face parses it, its figures are those of the records, and it invents nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from cell_results import cell_result
from huggingface_hub import ModelCard

from his2lip.cli.model_card import benchmarks_in, figures_of, write_model_card
from his2lip.data.cards.terms import Terms
from his2lip.evaluation.reliability import Calibrated
from his2lip.evaluation.results import CellResult, read_results, to_csv
from his2lip.evaluation.task_results import Estimate, TaskCell, TaskRow, write_tasks
from his2lip.serving.calibration import Calibration
from his2lip.serving.hub_card import CARD, CardContent, card_description

WEIGHTS = "9" * 64
TERMS = Terms(datasets={"bci": "CC BY-NC 4.0"}, commercial=False, attribution=("Liu et al. 2022",))
META = {
    "tensor_digest": WEIGHTS,
    "data_digest": "d" * 64,
    "terms": TERMS.to_json(),
    "began_as": ["biomedclip"],
    "training_data": [
        {
            "dataset": "bci", "generated": True, "split": "train", "patches": 3896, "organs": ["breast"],
            "stains": {"DAB": 3896}, "tissues": {}, "biomarkers": {"HER2": 3896},
        }
    ],
}  # fmt: skip
CALIBRATION = Calibration(
    temperature=0.07, model="m", prompts="p", question="tissue type", data_digest="d", dataset="mihic",
    split="val", n=84, nll_before=0.0, nll_after=0.0, ece_before=0.0, ece_after=0.0,
)  # fmt: skip
LIMITS = {
    f"{name}_{end}": value
    for name, low, high in (("macro_f1", 0.2, 0.6), ("accuracy", 0.3, 0.7), ("chance_corrected", -0.1, 0.1))
    for end, value in (("lo", low), ("hi", high))
}


def board(*changes: dict[str, object]) -> list[CellResult]:
    """Grid cells of the promoted weights, and one of another model."""
    own = [
        cell_result(model="tuned", weights_sha256=WEIGHTS, cell=f"c{i}", **change)
        for i, change in enumerate(changes)
    ]
    return [*own, cell_result(model="other", cell="other")]


def task(name: str, rows: list[TaskRow], **changes: object) -> TaskCell:
    """The grid cell of a task, of the promoted weights."""
    known: dict[str, object] = {
        "model": "tuned", "dataset": "mist", "generated": False, "in_domain": False, "overlap_units": 0,
        "overlap_images": 0, "overlap_cases": 0, "split": "val", "role": "report", "weights_sha256": WEIGHTS,
        "encoder": "e", "split_sha256": "s", "images_sha256": "i", "settings_sha256": "x", "caveat": None,
    }  # fmt: skip
    return TaskCell(**(known | {"task": name, "cell": name, "rows": rows} | changes))  # type: ignore[arg-type]


def task_row(setting: dict[str, str], **figures: Estimate) -> TaskRow:
    return TaskRow(
        setting=setting,
        sizes={"units": 400},
        clusters=12,
        cluster_kind="case",
        no_interval=None,
        figures=figures,
    )


def write(
    folder: Path, cells: list[CellResult], *, tasks: Sequence[TaskCell] = (), **changes: object
) -> ModelCard:
    """The card of a checkpoint whose benchmark `zoo` has these cells, as Hugging Face reads it."""
    place = folder / "benchmark/zoo"
    place.mkdir(parents=True)
    (place / "leaderboard.csv").write_text(to_csv(cells), encoding="utf-8")
    write_tasks(str(place), tasks)
    known = {"calibrations": [], "familiarity": None, "meta": META, "chosen": None} | changes
    figures = figures_of(WEIGHTS, benchmarks_in(folder))
    write_model_card(folder, CardContent(name="lung", source="runs/x/best", figures=figures, **known))  # type: ignore[arg-type]
    return ModelCard.load(folder / CARD)


def test_hugging_face_reads_the_figures_that_the_benchmark_recorded(tmp_path: Path) -> None:
    cells = board(
        {"dataset": "hnscc", "macro_f1": 0.123456789012345, **LIMITS},
        {"dataset": "bci", "protocol": "paper", "generated": True, "no_interval": "the slides are unknown"},
    )
    card = write(tmp_path, cells)
    rows = {
        c.scored_as: c for c in read_results(tmp_path / "benchmark/zoo/leaderboard.csv") if c.model == "tuned"
    }
    assert card.data.model_name == "lung"
    found = {(r.dataset_name, r.metric_type): r for r in card.data.eval_results}
    assert found.keys() == {(row, kind) for row in rows for kind in ("f1", "accuracy", "chance_corrected")}
    for (row, kind), result in found.items():
        field = {"f1": "macro_f1"}.get(kind, kind)
        assert result.metric_value == getattr(rows[row], field)
        assert result.metric_args["n"] == rows[row].n
        limits = rows[row].interval(field)
        assert result.metric_args.get("interval_95") == (None if limits is None else list(limits))
        assert limits or result.metric_args["no_interval"] == "the slides are unknown"
    assert found["bci-generated.paper", "f1"].dataset_args["generated"] is True


def test_every_figure_of_the_text_has_its_n_and_interval(tmp_path: Path) -> None:
    text = write(
        tmp_path, board({"dataset": "hnscc", **LIMITS}, {"dataset": "bci", "no_interval": "why"})
    ).text
    rows = [line for line in text.splitlines() if line.startswith(("| hnscc", "| bci"))]
    assert len(rows) == 2
    for row in rows:
        assert "n = 10, 5 cases" in row
        assert len(re.findall(r"\d+\.\d\d \((?:no interval|-?\d+\.\d to -?\d+\.\d)\)", row)) == 3
    assert "bci: no interval, why" in text
    assert "cannot be told from chance (chance-corrected 0.00 (-10.0 to 10.0), n = 10, 5 cases)" in text


def test_failures_are_named_with_their_counts(tmp_path: Path) -> None:
    text = write(
        tmp_path,
        board(
            {
                "dataset": "hnscc",
                "order_depends_on_prompts": True,
                "prompt_order_least": 0.6,
                "cut_prompts": 3,
            }
        ),
    ).text
    failures = text.split("## Known failures")[1].split("## ")[0]
    assert "worst class 'b': 0 of 5 units are recognised" in failures
    assert "its order with another model depends on the prompts (60 % of 200 draws keep it)" in failures
    assert "3 of its prompts cut" in failures


def test_retrieval_has_its_base_and_chance_and_only_these_weights_figures(tmp_path: Path) -> None:
    recall, rank = Estimate(value=0.42, lo=0.3, hi=0.55), Estimate(value=3, unit="rank")
    figures = dict.fromkeys(("recall_at_1", "recall_at_5", "recall_at_10", "mean_average_precision"), recall)
    chances = {f"{name}_chance": Estimate(value=0.125) for name in figures}
    ranks = {"median_rank": rank, "median_rank_chance": Estimate(value=8, unit="rank")}
    rows = [task_row({"direction": "image-to-text", "relevance": "tissue"}, **figures, **chances, **ranks)]
    other = task("retrieval", rows, dataset="bci", weights_sha256="0" * 64, cell="another")
    text = write(tmp_path, [], tasks=[task("retrieval", rows, caveat="of another bank"), other]).text
    found = text.split("## Retrieval")[1].split("## ")[0]
    (row,) = [line for line in found.splitlines() if line.startswith("| mist")]
    assert row.count("42.00 (30.00 to 55.00); chance 12.50") == 4
    assert "3; chance 8 | 400 units, 12 cases | val (report) |" in row
    assert "mist: of another bank" in found
    assert "bci" not in found
    assert len(row.split("|")) == len(found.splitlines()[5].split("|")), "as many columns as its head"


def test_drops_under_changed_images_are_failures_where_their_interval_is_above_none(tmp_path: Path) -> None:
    levels = {
        "JPEG": [("70", 0.01, (-0.02, 0.04)), ("10", 0.2, (0.1, 0.3))],
        "blur": [("1", 0.02, (-0.01, 0.05))],
    }
    rows = [task_row({"perturbation": "none", "level": "0"}, macro_f1=Estimate(value=0.6, lo=0.5, hi=0.7))]
    rows += [
        task_row(
            {"perturbation": kind, "level": level}, drop=Estimate(value=drop, lo=limits[0], hi=limits[1])
        )
        for kind, known in levels.items()
        for level, drop, limits in known
    ]
    text = write(tmp_path, board({}), tasks=[task("robustness", rows)]).text
    failures = text.split("## Known failures")[1].split("## ")[0]
    assert "JPEG at level 10: macro F1 falls by 20.00 (10.00 to 30.00) points, from 60.00" in failures
    assert "400 units, 12 cases" in failures
    assert "blur" not in failures
    assert "level 70" not in failures


def test_a_large_drop_that_is_not_told_from_none_does_not_hide_a_smaller_one_that_is(tmp_path: Path) -> None:
    rows = [task_row({"perturbation": "none", "level": "0"}, macro_f1=Estimate(value=0.6, lo=0.5, hi=0.7))]
    for level, drop, low, high in (("90", 0.02, 0.01, 0.03), ("70", 0.1, 0.05, 0.15), ("10", 0.2, -0.1, 0.5)):
        found = Estimate(value=drop, lo=low, hi=high)
        rows.append(task_row({"perturbation": "JPEG", "level": level}, drop=found))
    failures = _failures(write(tmp_path, board({}), tasks=[task("robustness", rows)]).text)
    assert "JPEG at level 70: macro F1 falls by 10.00 (5.00 to 15.00) points" in failures
    assert "level 10:" not in failures
    assert "level 90" not in failures


def test_a_perfect_model_is_not_said_to_be_at_chance_where_enough_cases_agree(tmp_path: Path) -> None:
    right = {"chance_corrected": 1.0, "clusters": 30, "n": 60}
    reason = "an interval needs 5 cases, and there are only 3"
    few = {"dataset": "few", "clusters": 3, "no_interval": reason, "chance_corrected": 1.0}
    same = {"dataset": "same", "chance_corrected": 0.0, "clusters": 30}
    lines = {
        name: next(line for line in failures.splitlines() if line.startswith(f"- {name}:"))
        for failures in [_failures(write(tmp_path, board({"dataset": "all", **right}, few, same)).text)]
        for name in ("all", "few", "same")
    }
    assert "no case changes the figure, and it has no interval (n = 60, 30 cases)" in lines["all"]
    assert "chance" not in lines["all"]
    for name in ("few", "same"):
        assert "is not shown to be better than chance" in lines[name]


def _failures(text: str) -> str:
    return text.split("## Known failures")[1].split("## ")[0]


def test_calibration_on_scored_units_is_told_apart_from_the_stored_temperature(tmp_path: Path) -> None:
    measured = {"ece": Estimate(value=0.031, lo=0.0, hi=0.05), "slope": Estimate(value=None)}
    measured |= dict.fromkeys(("brier", "nll"), Estimate(value=0.5, unit="coefficient"))
    found = Calibrated(temperature=0.02, fitted_on="val", fitted_n=40, figures=measured, curve=[])
    text = write(tmp_path, board({"calibration": found}), calibrations=[CALIBRATION]).text
    part = text.split("## Calibration")[1].split("## ")[0]
    assert "temperature 0.07, fitted on mihic" in part
    assert "error 3.10 (0.00 to 5.00), Brier score 0.500" in part
    assert "n = 10, 5 cases; temperature 0.02 of 40 units of val" in part


def test_figures_that_models_are_chosen_by_are_said_to_be_too_high(tmp_path: Path) -> None:
    chosen = write(tmp_path / "one", board({"role": "select", "split": "val", **LIMITS})).text
    assert "too high on average" in chosen
    assert "datasets of zoo (select splits)" in chosen
    assert "too high" not in write(tmp_path / "two", board(LIMITS)).text


def test_the_licence_is_not_invented_and_the_terms_are_inherited(tmp_path: Path) -> None:
    card = write(tmp_path, board({}))
    assert (card.data.license, card.data.library_name) == ("other", "open_clip")
    assert card.data.base_model == ["microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"]
    terms = card.text.split("## Licence and terms")[1].split("## ")[0]
    for part in ("CC BY-NC 4.0", "forbids commercial use", "Liu et al. 2022", "licence MIT"):
        assert part in terms
    assert "bci (generated), split train, 3,896 patches" in card.text
    assert "Not for diagnosis" in card.text


def test_a_checkpoint_without_a_benchmark_has_a_card_without_figures(tmp_path: Path) -> None:
    others = [cell_result(model="other")]
    card = write(tmp_path, others, meta={"tensor_digest": WEIGHTS}, calibrations=[CALIBRATION])
    assert card.data.eval_results is None
    assert "No benchmark of these weights was found" in card.text
    assert "no terms are recorded with this model" in card.text
    assert "tissue type: temperature 0.07, fitted on mihic, split val, 84 patches" in card.text


def test_a_damaged_leaderboard_is_named_and_gives_no_figure(tmp_path: Path) -> None:
    place = tmp_path / "benchmark/broken"
    place.mkdir(parents=True)
    (place / "leaderboard.csv").write_text("not,a,leaderboard\n")
    card = write(tmp_path, board({}))
    assert "The results of broken could not be read." in card.text


@pytest.mark.parametrize("datasets", [1, 60])
def test_the_description_in_the_registry_has_whole_sections_and_fits(tmp_path: Path, datasets: int) -> None:
    card = write(tmp_path, board(*({"dataset": f"d{i}", **LIMITS} for i in range(datasets))))
    text = card_description(str(card))
    assert len(text) <= 5000
    assert not text.startswith("---")
    assert "Liu et al. 2022" in text
    assert ("| d0 " in text) == (datasets == 1), "the table is left out as a whole"
    assert CARD in text
