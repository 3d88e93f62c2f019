"""How often the stain check is right: detected stain by true stain, as a Markdown table.

Usage: python benchmarks/stain_check.py [FOLDER OF REAL IMAGES]

The folder has the layout of ../shared/real_ihc, which is the default. docs/datasets.md contains the table.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from his2lip.data.images.codec import decode
from his2lip.data.images.stain_detection import LOOKS, look_at
from his2lip.data.images.stain_vectors import AEC, DAB, EOSIN, HAEMATOXYLIN, tilt, transmit
from his2lip.data.shards.reader import open_shards
from his2lip.synthetic.twins import write_twin

TILE = 256  # side of the tiles of real images, in pixels
TWINS = ("mihic", "hnscc", "bcdata", "ihc4bc", "mist")
LAB = 0.04  # standard deviation of a dye's direction between laboratories, per axis of its unit vector


def main(folder: Path) -> None:
    """Prints the table."""
    seen: dict[str, Counter[str | None]] = defaultdict(Counter)
    for source in (real(folder), mixed(), generated()):
        for name, pixels in source:
            seen[name][look_at(pixels).stain] += 1
    print("| what it is | images |", " | ".join((*LOOKS, "blank")), "|")
    print("| --- | ---: |", " | ".join(["---:"] * (len(LOOKS) + 1)), "|")
    for name, looks in seen.items():
        cells = " | ".join(str(looks[look]) for look in (*LOOKS, None))
        print(f"| {name} | {looks.total()} | {cells} |")


def real(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Tiles of scikit-image's real image and of the folder's images. `-He-` in a file name marks H&E."""
    from skimage.data import immunohistochemistry

    yield from (("DAB, real", tile) for tile in tiles(np.asarray(immunohistochemistry())))
    for path in sorted((*folder.rglob("*.jpg"), *folder.rglob("images/test/*.png"))):
        name = "H&E, real (one image)" if "-He-" in path.name else "DAB, real"
        yield from ((name, tile) for tile in tiles(decode(path.read_bytes())))


def mixed(copies: int = 12) -> Iterator[tuple[str, np.ndarray]]:
    """The real IHC image with its second stain replaced; each copy has the hues of another laboratory."""
    from skimage.color import rgb2hed
    from skimage.data import immunohistochemistry

    rng = np.random.default_rng(0)
    amounts = np.clip(rgb2hed(immunohistochemistry())[..., [0, 2]], 0, None) * np.log(10)
    for name, second in (("DAB", DAB), ("AEC", AEC), ("H&E", EOSIN), ("haematoxylin", None)):
        for _ in range(copies):
            dyes = [tilt(v, rng.normal(0, LAB, 3)) for v in (HAEMATOXYLIN, second or DAB)]
            strength = np.array([rng.uniform(0.6, 1.4), rng.uniform(0.4, 1.4) if second else 0], np.float32)
            light = transmit((amounts * strength).astype(np.float32), np.stack(dyes))
            yield from ((f"{name}, mixed on real tissue", t) for t in tiles((255 * light).astype(np.uint8)))


def generated() -> Iterator[tuple[str, np.ndarray]]:
    """Patches of generated twins."""
    with tempfile.TemporaryDirectory() as place:
        for twin in TWINS:
            write_twin(twin, f"{place}/{twin}", seed=0, scale=0.5)
            shards = open_shards(f"{place}/{twin}")
            for split in shards.splits:
                for batch in shards.iter_rows(split, ["image", "stain"]):
                    for row in batch.to_pylist():
                        yield f"{row['stain']}, generated patches", decode(row["image"])


def tiles(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """All tiles that lie wholly inside an image (H, W, 3)."""
    height, width = pixels.shape[:2]
    for y in range(0, height - TILE + 1, TILE):
        for x in range(0, width - TILE + 1, TILE):
            yield pixels[y : y + TILE, x : x + TILE]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/real_ihc"))
