"""Caption banks are imported with a reason for each file left out, and draws are pure functions."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unprivileged import needs_setpriv, run_as_user

from his2lip.cli.data import prepare_dataset
from his2lip.data.captions.bank import CaptionBank, Subject
from his2lip.data.captions.corpus import mihic_pairs
from his2lip.data.shards import STAININGS
from his2lip.errors import ConfigError, DatasetError
from his2lip.taxonomy import BIOMARKERS, TISSUES

Factory = pytest.TempPathFactory
TEMPLATES = CaptionBank.templates()


_IMPORT = """
from pathlib import Path
from his2lip.data.captions.corpus import read_corpus
from his2lip.errors import DatasetError

try:
    read_corpus(Path("in"))
except DatasetError as error:
    print(error.where)
"""


def corpus(root: Path) -> Path:
    """A small corpus with the released one's quirks."""
    files = {
        "Tumor/CD3.txt": b"T cells between nests.\r\n\r\nA few brown  lymphocytes.\r\n",
        "Tumor/cyclin-D1.txt": b"Brown nuclei.\n\n",
        "Immune Cells/D2-40.txt": b"Lymphatic lining.\n",
        "Other/Immune Cells/D2-40.txt": b"Lymphatic lining.\n",
        "Other/Immune Cells/CD3.txt": b"Nowhere else.\n",
        "Stroma/FAP.txt": b"",
        "Stroma/SMA.txt": b"caf\xe9\n",
        "Stroma/CD999.txt": b"What is it?\n",
        "Muscle/SMA.txt": b"Smooth muscle.\n",
    }
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def whole(bank: CaptionBank) -> dict:
    """Both parts of a bank together."""
    return {pair: lines + bank.held_out.get(pair, ()) for pair, lines in bank.captions.items()}


def test_corpus_imports_with_a_reason_for_each_file_left_out(tmp_path: Path) -> None:
    bank, report = CaptionBank.from_folder(corpus(tmp_path))
    assert {pair: set(lines) for pair, lines in whole(bank).items()} == {
        ("Immune cells", "D2-40"): {"Lymphatic lining."},
        ("Tumor", "CD3"): {"T cells between nests.", "A few brown lymphocytes."},
        ("Tumor", "Cyclin-D1"): {"Brown nuclei."},
    }
    assert {pair: len(lines) for pair, lines in bank.held_out.items()} == {("Tumor", "CD3"): 1}
    assert (report.found, report.read, report.captions, report.blank_lines) == (9, 3, 4, 2)
    assert report.read + len(report.left_out) == report.found
    reasons = dict(report.left_out)
    assert reasons["Other/Immune Cells/D2-40.txt"] == "nested, and the same as Immune Cells/D2-40.txt"
    assert reasons["Other/Immune Cells/CD3.txt"] == "not at TISSUE/BIOMARKER.txt"
    assert reasons["Stroma/FAP.txt"].startswith("empty")
    assert reasons["Stroma/SMA.txt"] == "not UTF-8 (byte 3)"
    assert "CD999" in reasons["Stroma/CD999.txt"]
    assert "Muscle" in reasons["Muscle/SMA.txt"]
    assert len(report.uncovered) == 81


def test_every_file_is_read_passed_over_or_left_out(tmp_path: Path) -> None:
    for name in (
        "Tumor/CD20.TXT",
        "Tumor/CD3.txt",
        "Tumor/notes.md",
        "Stroma /FAP .txt",
        "Thumbs.db",
        "@eaDir/a.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("Brown cells.\n")
    bank, report = CaptionBank.from_folder(tmp_path)
    assert set(whole(bank)) == {("Tumor", "CD20"), ("Tumor", "CD3"), ("Stroma", "FAP")}
    assert (report.found, report.read, report.passed_over) == (4, 3, 2)
    assert [path for path, _ in report.left_out] == ["Tumor/notes.md"]


@needs_setpriv
def test_folder_of_captions_that_may_not_be_listed_is_an_error(tmp_path: Path) -> None:
    for tissue in ("Stroma", "Tumor"):
        (tmp_path / "in" / tissue).mkdir(parents=True)
        (tmp_path / "in" / tissue / "CD3.txt").write_text("brown cells\n")
    (tmp_path / "in/Tumor").chmod(0)
    done = run_as_user(_IMPORT, cwd=tmp_path)
    (tmp_path / "in/Tumor").chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "Tumor"


def test_two_files_of_one_pair_are_an_error(tmp_path: Path) -> None:
    for name in ("CD3.txt", "cd3 .TXT"):
        (tmp_path / "Tumor").mkdir(exist_ok=True)
        (tmp_path / "Tumor" / name).write_text("Brown cells.\n")
    with pytest.raises(DatasetError) as refused:
        CaptionBank.from_folder(tmp_path)
    assert (refused.value.where, refused.value.key) == (tmp_path / "Tumor", "cd3 .TXT")


def test_unicode_forms_of_one_caption_are_one_caption(tmp_path: Path) -> None:
    (tmp_path / "Tumor").mkdir()
    (tmp_path / "Tumor/CD3.txt").write_text("Na\u00efve cells.\nNai\u0308ve cells.\n", encoding="utf-8")
    bank, report = CaptionBank.from_folder(tmp_path)
    assert whole(bank)["Tumor", "CD3"] == ("Na\u00efve cells.",) * 2
    assert report.repeated == 1


def test_released_corpus_imports_whole(shared: Path) -> None:
    bank, report = CaptionBank.from_folder(shared / "captions/AugmentedCaptions")
    assert (report.captions, report.read, report.blank_lines) == (7289, 73, 703)
    assert len(report.left_out) == 12
    assert all(reason.startswith("nested, and the same as") for _, reason in report.left_out)
    assert len(report.uncovered) == 11
    assert (report.repeated, report.families, report.families_held_out, report.held_out) == (
        44,
        550,
        141,
        1616,
    )
    assert ("Tumor", "Cyclin-D1") in bank.captions
    ours = {line for lines in TEMPLATES.captions.values() for line in lines}
    assert not ours & {line for lines in whole(bank).values() for line in lines}


def test_folder_without_captions_is_an_error_that_names_it(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError) as refused:
            CaptionBank.from_folder(folder)
        assert refused.value.where == folder


def test_bank_that_cannot_be_written_and_options_for_images_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "in/Tumor").mkdir(parents=True)
    (tmp_path / "in/Tumor/CD3.txt").write_text("T cells among tumour nests.\n")
    (tmp_path / "file").write_text("not a folder")
    bank = tmp_path / "file/bank.json"
    with pytest.raises(ConfigError) as unwritten:
        prepare_dataset("captions", tmp_path / "in", str(bank))
    assert (str(unwritten.value.where), unwritten.value.key) == (str(bank), "--out")
    with pytest.raises(DatasetError) as refused:
        prepare_dataset("captions", tmp_path / "in", str(tmp_path / "bank.json"), limit=3)
    assert refused.value.key == "--limit"


def test_templates_cover_every_pair_with_varied_sentences() -> None:
    assert len(mihic_pairs()) == 84
    typical = CaptionBank.templates("ignore")
    for pair in [*mihic_pairs(), *((t, b) for t in (*TISSUES, None) for b in (*BIOMARKERS, None))]:
        of_bands = [TEMPLATES.stained[*pair, band] for band in STAININGS]
        for lines in (TEMPLATES.captions[pair], typical.captions[pair], *of_bands):
            assert len(lines) >= (6 if pair[0] == "Background" else 12)
            assert len(set(lines)) == len(lines)
            assert all(7 <= len(line.split()) <= 36 and line.endswith((".", ").")) for line in lines)
            assert not any("{" in line or "  " in line for line in lines)


def test_templates_name_the_biomarker() -> None:
    for biomarker in ("CD3", "CD34", "D2-40", "Ki67"):
        assert all(biomarker in line for line in TEMPLATES.captions["Tumor", biomarker])


PAIRS = st.sampled_from(sorted(TEMPLATES.captions, key=str))


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.text(max_size=40), PAIRS)
def test_draw_is_a_pure_choice_of_the_pairs_captions(
    seed: int, epoch: int, patch_id: str, pair: tuple
) -> None:
    drawn = TEMPLATES.draw(seed, epoch, patch_id, Subject(*pair))
    assert drawn in TEMPLATES.captions[pair]
    assert drawn == TEMPLATES.draw(seed, epoch, patch_id, Subject(*pair))


def test_draws_are_even_and_change_with_epoch_and_seed() -> None:
    lines = TEMPLATES.captions["Tumor", "CD3"]
    draws = [TEMPLATES.draw(7, 0, f"p{i}", Subject("Tumor", "CD3")) for i in range(9000)]
    counts = Counter(draws)
    assert set(counts) == set(lines)
    assert max(counts.values()) < 1.35 * 9000 / len(lines)
    again = [TEMPLATES.draw(7, 1, f"p{i}", Subject("Tumor", "CD3")) for i in range(9000)]
    other = [TEMPLATES.draw(8, 0, f"p{i}", Subject("Tumor", "CD3")) for i in range(9000)]
    for changed in (again, other):
        same = sum(a == b for a, b in zip(draws, changed, strict=True))
        assert same < 2 * 9000 / len(lines)


def test_missing_pair_is_dropped_or_captioned_by_templates_and_counted() -> None:
    lines = {("Tumor", "CD3"): ("One.",), ("Stroma", "FAP"): ("Two.",)}
    drop, template = CaptionBank(lines), CaptionBank(lines, "template")
    pairs = [("Tumor", "CD3")] * 3 + [("Alveoli", "CD20")] * 2 + [(None, "CD31")]
    assert not drop.covers("Alveoli", "CD20")
    assert template.covers("Alveoli", "CD20")
    with pytest.raises(DatasetError) as refused:
        drop.draw(0, 0, "p", Subject("Alveoli", "CD20"))
    assert refused.value.key == "missing"
    assert "Alveoli" in refused.value.what
    assert template.draw(0, 0, "p", Subject("Alveoli", "CD20")) in TEMPLATES.captions["Alveoli", "CD20"]
    coverage = drop.coverage(pairs)
    assert coverage.missing == {("Alveoli", "CD20"): 2, (None, "CD31"): 1}
    assert coverage.unused == [("Stroma", "FAP")]
    assert "6 patches, 3 of them without a caption of their pair (left out)" in str(coverage)


LINES = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4).map(tuple)


@settings(max_examples=30)
@given(st.dictionaries(PAIRS, LINES, max_size=5), st.sampled_from(["drop", "template"]))
def test_saved_bank_loads_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, lines: dict, missing: str
) -> None:
    path = tmp_path_factory.mktemp("bank") / "bank.json"
    held = {("Tumor", "FAP"): ("Held.",)}
    stained = {(*pair, "weak"): ("Weak.",) for pair in lines}
    for bank in (
        CaptionBank(lines, missing),
        CaptionBank(lines, missing, held),
        CaptionBank(lines, missing, stained=stained),
    ):
        bank.save(path)
        assert CaptionBank.load(path) == bank
        assert CaptionBank.load(path).digest == bank.digest
    assert [p.name for p in path.parent.iterdir()] == ["bank.json"], "written whole, nothing left beside it"


def test_digest_sees_every_change_but_the_order_of_pairs() -> None:
    a, b = ("Tumor", "CD3"), ("Stroma", "FAP")
    bank = CaptionBank({a: ("One.", "Two."), b: ("Three.",)})
    assert CaptionBank({b: ("Three.",), a: ("One.", "Two.")}).digest == bank.digest
    assert CaptionBank({a: ("Two.", "One."), b: ("Three.",)}).digest != bank.digest
    assert CaptionBank(bank.captions, "template").digest != bank.digest
    assert CaptionBank(bank.captions, held_out={a: ("Four.",)}).digest != bank.digest
    weak = CaptionBank(bank.captions, stained={(*a, "weak"): ("Five.",)})
    assert weak.digest != bank.digest
    assert weak.digest != CaptionBank(bank.captions, stained={(*a, "strong"): ("Five.",)}).digest
    assert TEMPLATES.digest != CaptionBank.templates("ignore").digest


def test_file_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    good = {"tissue": "Tumor", "biomarker": "CD3", "captions": ["Brown T cells."]}
    bad = [
        {"tissue": "Tumour"},
        {"biomarker": "CD999"},
        {"captions": [""]},
        {"captions": [3]},
        {"held_out": [""]},
    ]
    trees = [{"a": 1}, {"missing": "never", "bank": [good]}]
    trees += [{"missing": "drop", "bank": [good | change]} for change in bad]
    for tree in trees:
        (tmp_path / "x.json").write_text(json.dumps(tree))
        with pytest.raises(DatasetError) as refused:
            CaptionBank.load(tmp_path / "x.json")
        assert refused.value.where == tmp_path / "x.json"
    (tmp_path / "x.json").write_text(json.dumps({"missing": "drop", "bank": [good]}))
    assert CaptionBank.load(tmp_path / "x.json").covers("Tumor", "CD3")


def test_file_name_that_is_not_utf8_is_left_out_and_can_be_printed(tmp_path: Path) -> None:
    corpus(tmp_path)
    with open(os.fsencode(tmp_path) + b"/Tumor/CD3\xff.txt", "wb") as odd:
        odd.write(b"x\n")
    _, report = CaptionBank.from_folder(tmp_path)
    assert any("udcff" in path for path, _ in report.left_out)
    str(report).encode()  # raises for what cannot be printed


@pytest.mark.parametrize("part", ["captions", "held_out"])
def test_bank_whose_sentence_was_changed_is_refused(tmp_path: Path, part: str) -> None:
    path, pair = tmp_path / "bank.json", ("Tumor", "CD3")
    CaptionBank({pair: ("Brown T cells.",)}, held_out={pair: ("Brown T lymphocytes.",)}).save(path)
    tree = json.loads(path.read_text())
    tree["bank"][0][part][0] += "!"
    path.write_text(json.dumps(tree))
    with pytest.raises(DatasetError) as refused:
        CaptionBank.load(path)
    assert (refused.value.where, refused.value.key) == (path, "digest")
    assert "data prepare captions" in str(refused.value.fix)
    del tree["digest"]
    path.write_text(json.dumps(tree))
    assert CaptionBank.load(path).captions, "a bank of an earlier version"
