"""With --pseudonymise no name is left under --out, and the map of names gives the original names."""

from __future__ import annotations

import csv
import io
import stat
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from his2lip.data.cards.card import Card, load_card
from his2lip.data.check.dataset import check
from his2lip.data.images.codec import decode, encode_jpeg, encode_png
from his2lip.data.images.slides import open_slide
from his2lip.data.prepare.dataset import prepare
from his2lip.data.prepare.privacy import Key, NameMap, without_metadata
from his2lip.data.shards.reader import open_shards
from his2lip.errors import DatasetError

SECRETS = ["ROSALIND", "Franklin", "19200725"]
CARD = {
    "name": "mine",
    "reader": "folder",
    "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
    "carve": [{"source": "train", "into": "test", "fraction": 0.3, "by": "case"}],
    "options": {"case_pattern": "([A-Z]+-[0-9]+)"},
}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


def named_images(root: Path, pixels: np.ndarray) -> Path:
    """Images with names of cases in their paths, EXIF, comments and text; some are broken."""
    note = PngInfo()
    note.add_text("Patient", SECRETS[1])
    exif = Image.Exif()
    exif[0x013B] = SECRETS[1]
    for case in range(6):
        folder = root / "lymphoid" / f"ROSALIND-{case}"
        folder.mkdir(parents=True)
        image = Image.fromarray(pixels[case : 64 + case, :64])
        image.save(folder / "Franklin_a.png", pnginfo=note)
        image.save(folder / "Franklin_b.jpg", exif=exif, comment=SECRETS[2].encode())
        image.save(folder / "Franklin_c.tif", description=SECRETS[2])
    (folder / "Franklin_d.png").write_bytes(b"broken")
    (folder / "Franklin_e.doc").write_bytes(b"a letter")
    return root


def containing(folder: Path, secret: str) -> list[str]:
    """Files under `folder`, and rows of shards, whose name or content contains a secret."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    found = [
        str(p) for p in files if secret in str(p.relative_to(folder)) or secret.encode() in p.read_bytes()
    ]
    if (folder / "dataset.json").is_file():
        shards = open_shards(folder)
        for split in shards.splits:
            for batch in shards.iter_rows(split, [*shards.table(split).column_names, "image"]):
                found += [
                    row["patch_id"] for row in batch.to_pylist() if secret.encode() in repr(row).encode()
                ]
    return found


def test_no_name_is_left_under_out(tmp_path: Path, key_file: Path, real_ihc: np.ndarray) -> None:
    root, out = named_images(tmp_path / "in", real_ihc), tmp_path / "out"
    card = Card.model_validate(CARD)
    plain = prepare(card, root, tmp_path / "plain")
    assert all(containing(tmp_path / "plain", secret) for secret in SECRETS)  # else the search finds nothing
    report = prepare(card, root, out, names=NameMap.open(key_file, tmp_path / "names.csv", out=str(out)))
    assert (report.found, report.read) == (plain.found, plain.read) == (20, 18)
    assert report.info.counts == plain.info.counts  # the same cases in the same splits
    for secret in SECRETS:
        assert containing(out, secret) == []
    assert check(out).problems == []


def test_no_name_is_left_by_an_interrupted_prepare(
    tmp_path: Path, key_file: Path, real_ihc: np.ndarray
) -> None:
    root, out, card = named_images(tmp_path / "in", real_ihc), tmp_path / "out", Card.model_validate(CARD)

    def stop(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    names = NameMap.open(key_file, tmp_path / "names.csv", out=str(out))
    with pytest.raises(KeyboardInterrupt):
        prepare(card, root, out, names=names, part_bytes=20_000, progress=stop)
    assert list((out / "_progress").iterdir())
    assert not any(containing(out, secret) for secret in SECRETS)
    names = NameMap.open(key_file, tmp_path / "names.csv", out=str(out))
    report = prepare(card, root, out, names=names, part_bytes=20_000)
    whole = prepare(card, root, tmp_path / "whole", names=names, part_bytes=20_000)
    assert report.info.digest == whole.info.digest
    assert report.quarantined == whole.quarantined


def test_the_map_gives_the_original_names_and_only_its_owner_may_read_it(
    tmp_path: Path, key_file: Path, real_ihc: np.ndarray
) -> None:
    root, out = named_images(tmp_path / "in", real_ihc), tmp_path / "out"
    names = NameMap.open(key_file, tmp_path / "names.csv", out=str(out))
    report = prepare(Card.model_validate(CARD), root, out, names=names)
    assert stat.S_IMODE((tmp_path / "names.csv").stat().st_mode) == 0o600
    with (tmp_path / "names.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    back = {(row["kind"], row["pseudonym"]): row for row in rows}
    assert len(back) == len(rows)
    table = open_shards(out).table("train").to_pylist()
    for row in table:
        file, case = row["patch_id"].removeprefix("mine/"), row["case_id"]
        assert back["case", case]["name"] in back["file", file]["name"]
        assert (root / back["file", file]["source"]).is_file()
    (letter,) = (row for row in rows if row["name"].endswith(".doc"))
    assert "not an image by its name" in letter["reason"]
    assert letter["pseudonym"] in dict(report.quarantined)


def test_pseudonyms_are_the_same_between_runs_and_datasets_and_change_with_the_key(
    tmp_path: Path, key_file: Path, real_ihc: np.ndarray
) -> None:
    root = named_images(tmp_path / "in", real_ihc)
    (tmp_path / "other").write_bytes(b"another key, long enough")
    (tmp_path / "other").chmod(0o600)

    def cases(name: str, key: Path) -> set[str]:
        names = NameMap.open(key, tmp_path / f"{key.name}.csv", out=str(tmp_path / name))
        prepare(Card.model_validate(CARD | {"name": name}), root, tmp_path / name, names=names)
        return set(open_shards(tmp_path / name).table("train")["case_id"].to_pylist())

    assert cases("a", key_file) == cases("b", key_file)
    assert not cases("c", tmp_path / "other") & cases("d", key_file)


def test_a_key_or_map_that_would_reveal_names_is_refused(tmp_path: Path, key_file: Path) -> None:
    out = str(tmp_path / "out")
    inside, names, short = tmp_path / "out/names.csv", tmp_path / "n.csv", tmp_path / "short"
    short.write_bytes(b"short")
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    readable = tmp_path / "readable"
    readable.write_bytes(bytes(32))
    readable.chmod(0o644)
    for key, path, where, fault in (
        (key_file, inside, inside, "--out"),
        (key_file, key_file, key_file, "--names"),
        (key_file, picture, picture, "--names"),
        (readable, names, readable, "mode"),
        (tmp_path / "none", names, tmp_path / "none", "--pseudonymise"),
        (short, names, short, "length"),
    ):
        with pytest.raises(DatasetError) as refused:
            NameMap.open(key, path, out=out)
        assert (refused.value.where, refused.value.key) == (where, fault)


def test_secret_is_not_part_of_the_keys_repr(key_file: Path) -> None:
    assert "x01" not in repr(Key.load(key_file))


@pytest.mark.parametrize(
    "kind", ["png", "jpeg", "progressive", "turned", "turned png", "tiff", "bmp", "trailing"]
)
def test_image_without_metadata_has_the_same_pixels(real_ihc: np.ndarray, kind: str) -> None:
    image, out = Image.fromarray(real_ihc[:50, :70]), io.BytesIO()
    exif = Image.Exif()
    exif[0x013B] = "Franklin"
    if "turned" in kind:
        exif[0x0112] = 6
    format_ = {"progressive": "JPEG", "turned": "JPEG", "turned png": "PNG", "trailing": "JPEG"}.get(
        kind, kind
    )
    image.save(out, format_, exif=exif, **({"progressive": True} if kind == "progressive" else {}))
    data = out.getvalue() + (b"Franklin" if kind in ("trailing", "bmp") else b"")
    bare = without_metadata(data)
    assert b"Franklin" in data
    assert b"Franklin" not in bare
    assert np.array_equal(decode(bare), decode(data))
    if kind in ("png", "jpeg", "progressive", "trailing"):
        assert len(bare) < len(data)


def test_an_image_without_metadata_is_kept_byte_for_byte(real_ihc: np.ndarray) -> None:
    for data in (encode_png(real_ihc), encode_jpeg(real_ihc)):
        assert without_metadata(data) == data


def write_aperio(path: Path, pixels: np.ndarray) -> None:
    """A slide as Aperio scanners write it, with a label and a macro image in one striking colour."""
    text = "Aperio Image Library v12\n{0}x{1} [0,0 {0}x{1}] (256x256) |AppMag = 40|MPP = 0.92"
    tiles = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    strips = {"photometric": "rgb", "rowsperstrip": 64, "metadata": None}
    magenta = np.full((128, 128, 3), (255, 0, 255), np.uint8)
    height, width = pixels.shape[:2]
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=text.format(width, height), **tiles)
        file.write(np.ascontiguousarray(pixels[::8, ::8]), description="Aperio thumbnail", **strips)
        file.write(
            np.ascontiguousarray(pixels[::4, ::4]), description=text.format(width // 4, height // 4), **tiles
        )
        for name in ("label", "macro"):
            description = f"Aperio Image Library v12\n{name} 128x128"
            file.write(magenta, description=description, subfiletype=1 if name == "label" else 9, **strips)


def test_label_and_macro_images_of_a_slide_are_never_read(
    tmp_path: Path, real_ihc: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openslide

    path = tmp_path / "in/1_ER_train.tif"
    path.parent.mkdir()
    write_aperio(path, np.tile(real_ihc, (2, 2, 1)))
    with openslide.OpenSlide(path) as slide:
        assert {"label", "macro"} <= set(slide.associated_images)

    def refused(*_: object) -> None:
        raise AssertionError("an associated image was asked for")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refused))
    prepare(load_card("acrobat"), path.parent, tmp_path / "out")
    with open_slide(path) as slide:
        overview = slide.overview(512)
    images = [overview]
    for split in open_shards(tmp_path / "out").splits:
        for batch in open_shards(tmp_path / "out").iter_rows(split, ["image"]):
            images += [decode(row["image"]) for row in batch.to_pylist()]
    assert len(images) > 4
    assert not any((pixels == (255, 0, 255)).all(axis=-1).any() for pixels in images)
