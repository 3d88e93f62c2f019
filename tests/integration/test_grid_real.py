"""The grid on real lung lesions stained for CD31 and proSPC, prepared and scored by the card of ANHIR.

Where ../shared is absent, test_grid.py tests the same steps on the real image in scikit-image.
"""

from __future__ import annotations

from pathlib import Path

from his2lip.config import validate
from his2lip.data.cards.card import load_card
from his2lip.data.prepare.dataset import prepare
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid import run_grid
from his2lip.evaluation.stored_cell import read_predictions


def test_real_lesions_are_scored_per_image_by_the_protocols_of_the_card(
    ray_local: None, shared: Path, tmp_path: Path
) -> None:
    report = prepare(
        load_card("anhir-lung"), shared / "real_ihc/anhir_cima_lung-lesion", tmp_path / "anhir-lung"
    )
    assert (report.read, report.quarantined) == (4, [])
    tree = {
        "models": ["tiny"],
        "datasets": ["anhir-lung"],
        "shards": str(tmp_path),
        "protocols": ["paper", "default"],
        "cache": str(tmp_path / "cache"),
        "storage": str(tmp_path / "runs"),
    }
    config = validate(BenchmarkConfig, tree)
    result = run_grid(config)
    assert not result.failed
    paper, default = (c for c in result.cells if c.model == "tiny")
    assert (paper.protocol, default.protocol) == ("paper", "default")
    assert paper.n == default.n == 4, "two lesions, each stained for CD31 and for proSPC"
    assert not paper.generated
    assert paper.classes == ["CD31", "Ki67", "proSPC"], "a class without images counts in macro F1 too"
    assert paper.macro_f1 <= 2 / 3
    labels = read_predictions(config.folder, default)["label"].to_pylist()
    assert sorted(labels) == ["CD31", "CD31", "proSPC", "proSPC"]
    squashed, tiled = 4, 4 * 16
    assert result.counts.images == 8, "each image once per view"
    assert squashed < result.counts.crops <= squashed + tiled
    assert run_grid(validate(BenchmarkConfig, tree)).ran == 0
