"""Small caption projects for tests."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from his2lip import taxonomy
from his2lip.captioning import Project
from his2lip.captioning.records import Fields, Key, Picture, Variant, key_id, seed_id, variant_id


def keys(count: int, *, pictures: int = 0) -> list[Key]:
    """Keys of pairs of the taxonomy; the first covers most patches."""
    pairs = [(t, b) for t in taxonomy.TISSUES for b in taxonomy.MIHIC_BIOMARKERS][:count]
    return [
        Key(
            id=key_id(tissue, biomarker, None),
            tissue=tissue,
            biomarker=biomarker,
            patches=10 * (count - i),
            pictures=tuple(
                Picture(patch=f"p{i}/{k}", file=f"images/{i}-{k}.png", context_um=200, scale_bar_um=50)
                for k in range(pictures)
            ),
            fields=Fields(compartment="nuclear", cells="lymphocytes", share="moderate", intensity=2),
            text=f"{biomarker} stains some cells of {tissue.lower()}, number {i}.",
        )
        for i, (tissue, biomarker) in enumerate(pairs)
    ]


def project(folder: Path, of: int | list[Key] = 4, *, pictures: int = 0) -> Project:
    """A project of a number of keys, or of these keys."""
    made = keys(of, pictures=pictures) if isinstance(of, int) else of
    for i, key in enumerate(made):
        for k, picture in enumerate(key.pictures):
            path = folder / picture.file
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (90 + 37 * i % 120, 120 + 11 * k, 60 + 53 * (i + k) % 140)
            Image.new("RGB", (96, 96), colour).save(path)
    return Project.create(folder, made, datasets={"runs/datasets/mihic": "0" * 64})


def variants(key: Key, count: int, *, seed: str | None = None) -> list[Variant]:
    """Rewordings of a key's seed, whose text is `seed` or the drafted one."""
    of = seed_id(key.id, seed or key.text)
    return [
        Variant(
            id=variant_id(key.id, of, n),
            key=key.id,
            seed=of,
            text=f"{key.biomarker}: some cells are stained, wording {n}.",
            model="test",
            prompt="reword",
            prompt_sha256="1" * 64,
            time="2026-01-01T00:00:00+00:00",
        )
        for n in range(count)
    ]
