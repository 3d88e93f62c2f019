"""Prompt draws: their exact figures, the same draws for all models, and pairs that change places."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_results import cell_result, plan_of
from real_tiles import tiles
from sklearn.metrics import f1_score

from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.evaluation import prompt_bands
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.grid_cell import run_cell
from his2lip.evaluation.leaderboard import with_prompt_order, write_leaderboard
from his2lip.evaluation.prompt_bands import (
    DRAWS,
    band,
    macro_f1_of_draws,
    order_shares,
    prompt_draws,
    varies,
)
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.zero_shot import Pooling, Scoring, Top, score
from his2lip.loss import WISELoss
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model
from his2lip.report.pages import write_pages


@pytest.mark.parametrize("pooling", ["mean_embedding", "mean_logit", "max"])
@pytest.mark.parametrize("scoring", ["cosine", "dot"])
@pytest.mark.parametrize(
    ("grouped", "top"), [(False, None), (True, None), (True, Top(1, 0.4))], ids=["images", "tiles", "event"]
)
def test_each_set_has_the_macro_f1_of_scoring_its_sentences_alone(
    pooling: Pooling, scoring: Scoring, grouped: bool, top: Top | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    classes, units = 4, 30
    images = rng.normal(size=(3 * units if grouped else units, 8)).astype(np.float32)
    groups = rng.permutation(np.arange(len(images)) % units) if grouped else None
    texts = [rng.normal(size=(size, 8)).astype(np.float32) for size in (12, 15, 2, 20)]
    labels = rng.integers(-1, classes, units)
    options = {"pooling": pooling, "scoring": scoring, "groups": groups, "top": top}
    found = macro_f1_of_draws(images, texts, labels, **options)
    known = labels >= 0
    for number, chosen in list(enumerate(zip(*prompt_draws([len(t) for t in texts]), strict=True)))[::8]:
        own = [t[rows] for t, rows in zip(texts, chosen, strict=True)]
        predicted = score(images, own, **options).predicted
        wanted = f1_score(
            labels[known], predicted[known], labels=range(classes), average="macro", zero_division=0
        )
        assert found[number] == pytest.approx(wanted, abs=1e-12), number
    monkeypatch.setattr(prompt_bands, "_CHUNK", 7 * DRAWS * classes)
    np.testing.assert_array_equal(macro_f1_of_draws(images, texts, labels, **options), found)


def test_the_sets_are_the_same_for_every_model_and_draw_each_sentence_once() -> None:
    draws = prompt_draws([12, 30, 2])
    assert [s.shape for s in draws] == [(DRAWS, 3), (DRAWS, 3), (DRAWS, 2)]
    for one, other in zip(draws, prompt_draws([12, 30, 2]), strict=True):
        np.testing.assert_array_equal(one, other)
        assert all(len(set(row)) == len(row) for row in one.tolist())
    counts = np.bincount(draws[0].reshape(-1), minlength=12)
    assert counts.min() > 25, "each of 12 sentences is in about 50 of 200 draws"
    assert varies([12, 2])
    assert not varies([3, 1])


def test_a_band_is_the_median_and_the_5_and_95_percent_quantiles() -> None:
    assert band(np.linspace(0, 1, 201).tolist()) == pytest.approx((0.5, 0.05, 0.95))


def test_the_share_in_order_counts_sets_that_order_two_models_as_their_headlines_do() -> None:
    first, second = [0.9, 0.8, 0.7, 0.6], [0.5, 0.8, 0.9, 0.1]
    draws = {"a": {"own": first}, "b": {"own": second}}
    for headlines, share in (((0.6, 0.5), 0.5), ((0.5, 0.6), 0.25)):
        shares = order_shares(dict(zip("ab", headlines, strict=True)), draws)
        assert shares == {"a": {"b": share}, "b": {"a": share}}
    assert order_shares({"a": 0.5, "b": 0.5}, {"a": {"own": first}, "b": {"own": first}})["a"] == {"b": 1.0}


def test_with_several_pools_the_least_share_counts() -> None:
    of_draws = {
        "a": {"own": [0.9, 0.9], "released": [0.2, 0.9]},
        "b": {"own": [0.1, 0.1], "released": [0.8, 0.1]},
        "c": {"own": [0.5, 0.5]},
    }
    shares = order_shares({"a": 0.9, "b": 0.1, "c": 0.5}, of_draws)
    assert shares == {"a": {"b": 0.5, "c": 1.0}, "b": {"a": 0.5, "c": 1.0}, "c": {"a": 1.0, "b": 1.0}}


# Two vocabularies for four tints of the same tiles, with no word in common between the classes of the other.
OURS = {
    "Alveoli": ("open air spaces", "septa of alveoli"),
    "Necrosis": ("debris of necrosis", "ghost remains"),
    "Stroma": ("collagen in stroma", "fibroblast bundles"),
    "Tumor": ("malignant nests", "carcinoma sheets"),
}
THEIRS = {
    "Alveoli": ("airy lung lacework", "breathing sacs"),
    "Necrosis": ("perished rubble", "smudged wreckage"),
    "Stroma": ("stringy scaffold", "wavy packing"),
    "Tumor": ("rogue growth", "swollen clumps"),
}
FRAMES = (
    "an image of {}",
    "a patch showing {}",
    "{} under the microscope",
    "slide with {}",
    "{}",
    "view of {}",
)
TINTS = {"Alveoli": (1, 1, 1), "Necrosis": (1, 0.6, 0.3), "Stroma": (0.4, 0.6, 1), "Tumor": (0.5, 1, 0.5)}


def pool(words: Mapping[str, Sequence[str]]) -> PromptSet:
    return PromptSet.build("pool", words, templates=FRAMES)


def taught(words: Mapping[str, Sequence[str]], images: list[np.ndarray], labels: list[str]) -> DualEncoder:
    """`tiny` after a few steps on the images, with captions in these words."""
    torch.manual_seed(0)
    model, loss, sentences = load_model("tiny", seed=0).train(), WISELoss(), dict(pool(words).sentences)
    pixels = torch.stack([model.preprocess(image) for image in images])
    number = torch.tensor([list(words).index(label) for label in labels])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(16):
        captions = [sentences[label][(step + i) % 12] for i, label in enumerate(labels)]
        features = model.encode_image(pixels), model.encode_text(captions)
        optimiser.zero_grad()
        loss(*features, number, torch.zeros_like(number), model.logit_scale).total.backward()
        optimiser.step()
    return model.eval()


def tinted_shards(folder: Path, pixels: np.ndarray) -> tuple[ShardSet, list[np.ndarray], list[str]]:
    """48 real tiles in four tints, each third one in train, and the images and tissue types of all."""
    card = Card.model_validate(
        {
            "name": "tinted",
            "reader": "none",
            "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
        }
    )
    images, labels = [], []
    with ShardWriter(folder, card=card) as writer:
        for i, tile in enumerate(tiles(pixels)[:48]):
            labels.append(list(TINTS)[i // 3 % 4])
            images.append((tile * np.array(TINTS[labels[-1]])).astype(np.uint8))
            writer.add(
                Patch(
                    patch_id=f"tinted/{i}.png",
                    image=encode_png(images[-1]),
                    dataset="tinted",
                    split="test" if i % 3 else "train",
                    tissue=labels[-1],
                    width=64,
                    height=64,
                )
            )
    return open_shards(folder), images[::3], labels[::3]


def test_two_models_whose_order_follows_the_wording_are_marked_in_the_records_the_csv_and_the_page(
    real_ihc: np.ndarray, tmp_path: Path
) -> None:
    shards, images, labels = tinted_shards(tmp_path / "tinted", real_ihc)
    plan = plan_of(shards, classes={name: [name] for name in TINTS})
    plan = replace(plan, prompts=pool(OURS), pools={"released": pool(THEIRS)})
    cache = EmbeddingCache(str(tmp_path / "cache"))
    runs = {}
    for name, words in {"of ours": OURS, "of theirs": THEIRS}.items():
        model = taught(words, images, labels)
        runs[name] = run_cell(ModelScorer(name, model, cache), plan, str(tmp_path / "grid"))
        again = run_cell(ModelScorer(name, model, cache), plan, str(tmp_path / "grid"))
        assert again.reused
        assert again.prompt_f1 == runs[name].prompt_f1
    ours, theirs = (run.result for run in runs.values())
    assert ours.macro_f1 > theirs.macro_f1 + 0.3
    assert theirs.prompt_pools["released"].macro_f1 > ours.prompt_pools["released"].macro_f1 + 0.3
    assert ours.prompt_f1_lo <= ours.prompt_f1_median <= ours.prompt_f1_hi

    cells = with_prompt_order(
        [run.result for run in runs.values()], {(n, "toy", "default"): r.prompt_f1 for n, r in runs.items()}
    )
    assert all(cell.order_depends_on_prompts for cell in cells)
    assert cells[0].prompt_order["of theirs"] == cells[1].prompt_order["of ours"] < 0.05
    board = Path(write_leaderboard(str(tmp_path / "grid"), cells, []))
    with board.open(newline="") as file:
        assert [row["order_depends_on_prompts"] for row in csv.DictReader(file)] == ["True", "True"]
    page = write_pages(board, tmp_path / "report").read_text()
    assert "order depends on prompts" in page
    assert "of ours above of theirs" in page
    with (tmp_path / "report/prompt_order.csv").open(newline="") as file:
        (pair,) = csv.DictReader(file)
    assert (pair["first"], pair["second"], pair["order_depends_on_prompts"]) == (
        "of ours",
        "of theirs",
        "True",
    )


def test_a_pair_that_keeps_its_order_is_not_marked(tmp_path: Path) -> None:
    cells = [cell_result(model="a", macro_f1=0.9), cell_result(model="b", macro_f1=0.1)]
    f1 = {
        ("a", "hnscc", "default"): {"own": [0.8] * DRAWS},
        ("b", "hnscc", "default"): {"own": [0.2] * DRAWS},
    }
    found = with_prompt_order(cells, f1)
    assert [c.order_depends_on_prompts for c in found] == [False, False]
    assert [c.prompt_order for c in found] == [{"b": 1.0}, {"a": 1.0}]
