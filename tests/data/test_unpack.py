"""Archives are unpacked once and safely, and unpacking resumes; malicious ones write nothing outside."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import Cutter

from his2lip.data.cards.card import Card, Split, load_card
from his2lip.data.prepare import archives
from his2lip.data.prepare.dataset import prepare
from his2lip.data.prepare.unpack import unpack
from his2lip.errors import DatasetError
from his2lip.synthetic.layouts import write_layout

FILES = {"a/1.txt": b"one", "a/2.txt": b"two", "b.txt": b"three"}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], *, mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as out:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def tree(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def test_folder_without_archives_is_read_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(b"x")
    assert unpack(tmp_path / "in").root == tmp_path / "in"
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.zip", zipped),
        ("x.tar.gz", tarred),
        ("x.tgz", tarred),
        ("x.tar", lambda path, files: tarred(path, files, mode="w")),
        ("x.tar.xz", lambda path, files: tarred(path, files, mode="w:xz")),
        ("x.tar.bz2", lambda path, files: tarred(path, files, mode="w:bz2")),
    ],
)
def test_archive_becomes_the_folder_of_its_name(tmp_path: Path, name: str, write: Callable) -> None:
    write(tmp_path / "in" / name, FILES)
    for root in (tmp_path / "in", tmp_path / "in" / name):
        found = unpack(root)
        assert found.root == Path(f"{root}.unpacked")
        assert tree(found.root) == {f"x/{path}": data for path, data in FILES.items()}
        assert found.refused == []


def test_folder_of_the_archives_own_name_in_it_is_not_doubled(tmp_path: Path) -> None:
    zipped(tmp_path / "in/images.zip", {"images/train/1.txt": b"1"})
    zipped(tmp_path / "in/annotations.zip", {"train/1.txt": b"2"})
    assert tree(unpack(tmp_path / "in").root) == {"images/train/1.txt": b"1", "annotations/train/1.txt": b"2"}


def test_nested_archives_are_unpacked_and_plain_files_lie_beside_them(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", FILES).read_bytes()
    middle = tarred(tmp_path / "middle.tar.gz", {"inner.zip": inner, "m.txt": b"m"}).read_bytes()
    zipped(tmp_path / "in/deep/outer.zip", {"middle.tar.gz": middle, "o.txt": b"o"})
    (tmp_path / "in/readme.txt").write_bytes(b"read me")
    (tmp_path / "in/linked").symlink_to(tmp_path)
    found = tree(unpack(tmp_path / "in", tmp_path / "work").root)
    assert (tmp_path / "work/linked").is_symlink(), "a reader reports that it is not followed"
    within = {f"deep/outer/middle/inner/{path}": data for path, data in FILES.items()}
    assert found == within | {
        "deep/outer/middle/m.txt": b"m",
        "deep/outer/o.txt": b"o",
        "readme.txt": b"read me",
    }


def test_what_an_archive_of_the_folder_was_unpacked_into_is_not_read_twice(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "in/a.zip", FILES)
    unpack(archive)
    assert tree(unpack(tmp_path / "in").root) == {f"a/{path}": data for path, data in FILES.items()}
    archive.unlink()
    assert unpack(tmp_path / "in").root == tmp_path / "in", "now it is all that there is"


def test_nothing_is_unpacked_twice_unless_it_was_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = zipped(tmp_path / "n.zip", FILES).read_bytes()
    path = zipped(tmp_path / "in/x.zip", {"n.zip": nested, "../out.txt": b"x"})
    first = unpack(tmp_path / "in")
    saved = count_saves(monkeypatch)
    assert unpack(tmp_path / "in") == first
    assert saved == []
    zipped(path, {"new.txt": b"new"})
    assert tree(unpack(tmp_path / "in").root) == {"x/new.txt": b"new"}


def count_saves(monkeypatch: pytest.MonkeyPatch, *, most: int = 10**6) -> list[str]:
    """Names of the files that are unpacked from here on; the one after `most` is an interruption."""
    saved: list[str] = []
    save = archives.Archive.save

    def counted(self: archives.Archive, entry: archives.Entry, *args: object, **more: object) -> None:
        if len(saved) >= most:
            raise KeyboardInterrupt
        save(self, entry, *args, **more)  # type: ignore[arg-type]
        saved.append(entry.name)

    monkeypatch.setattr(archives.Archive, "save", counted)
    return saved


@pytest.mark.parametrize("most", range(9))
def test_interrupted_unpacking_resumes_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    inner = zipped(tmp_path / "n.zip", FILES).read_bytes()
    zipped(
        tmp_path / "in/x.zip",
        {"n.zip": inner, "m.tar": tarred(tmp_path / "m.tar", FILES).read_bytes(), "o": b""},
    )
    with monkeypatch.context() as patch:
        before = count_saves(patch, most=most)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "in")
    after = count_saves(monkeypatch)
    found = tree(unpack(tmp_path / "in").root)
    assert found == {f"x/{a}/{path}": data for a in "mn" for path, data in FILES.items()} | {"x/o": b""}
    assert len(before) + len(after) == 9
    assert sorted(p.name for p in (tmp_path / "in.unpacked").iterdir()) == [".lock", ".unpacked.json", "x"]


def test_archive_that_was_unpacked_by_hand_is_not_unpacked_again(tmp_path: Path) -> None:
    path = zipped(tmp_path / "in/x.zip", FILES)
    shutil.unpack_archive(path, tmp_path / "in/x")
    assert unpack(tmp_path / "in").root == tmp_path / "in"


MANY = {f"{i:02}.txt": b"x" * (i + 1) for i in range(20)}


def test_zip_that_was_unpacked_by_hand_only_in_part_is_unpacked(tmp_path: Path) -> None:
    zipped(tmp_path / "in/x.zip", MANY)
    zipped(tmp_path / "half.zip", dict(list(MANY.items())[:17]))
    shutil.unpack_archive(tmp_path / "half.zip", tmp_path / "in/x")
    found = unpack(tmp_path / "in")
    assert tree(found.root) == {f"x/{path}": data for path, data in MANY.items()}
    assert found.notes == ["x.zip is unpacked, although 17 of its 20 files lie in x/"]
    assert {why for _, why in found.refused} == {"a file of an archive has its place"}
    shutil.unpack_archive(tmp_path / "in/x.zip", tmp_path / "in/x")
    assert unpack(tmp_path / "in").root == tmp_path / "in", "now it is whole"


def test_zip_of_which_a_file_has_another_size_beside_it_is_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "in/x.zip", MANY)
    shutil.unpack_archive(path, tmp_path / "in/x")
    (tmp_path / "in/x/19.txt").write_bytes(b"cut")
    assert tree(unpack(tmp_path / "in").root)["x/19.txt"] == MANY["19.txt"]


@pytest.mark.parametrize(
    ("name", "write", "which"), [("x.zip", zipped, "20 files"), ("x.tar", tarred, "16 first files")]
)
def test_archive_that_is_taken_as_unpacked_is_reported_with_the_reason(
    tmp_path: Path, real_ihc: np.ndarray, name: str, write: Callable, which: str
) -> None:
    cut = Cutter(real_ihc)
    paths = [cut.write(tmp_path / f"in/x/{i:02}.png") for i in range(20)]
    files = {path.name: path.read_bytes() for path in paths}
    write(tmp_path / "in" / name, files | {"__MACOSX/._00.png": b"resources"} if name == "x.zip" else files)
    card = Card(name="mine", reader="folder", splits={"test": Split(role="report")})
    report = prepare(card, tmp_path / "in", tmp_path / "out")
    assert report.notes == [f"{name} is taken as unpacked, since its {which} lie in x/"]
    assert (report.read, report.root) == (20, tmp_path / "in")
    assert not (tmp_path / "in.unpacked").exists()


def odd(kind: bytes) -> Callable[[Path], Path]:
    """A tar with an entry of a kind that is neither file nor folder, and one good file."""

    def write(path: Path) -> Path:
        with tarfile.open(path, "w") as out:
            info = tarfile.TarInfo("odd")
            info.type, info.linkname = kind, "/etc/passwd"
            out.addfile(info)
            good = tarfile.TarInfo("good.txt")
            good.size = 4
            out.addfile(good, io.BytesIO(b"good"))
        return path

    return write


def zip_with_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        link = zipfile.ZipInfo("odd")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        out.writestr(link, "/etc/passwd")
        out.writestr("good.txt", "good")
    return path


def named(name: str, write: Callable = zipped) -> Callable[[Path], Path]:
    return lambda path: write(path, {"good.txt": b"good", name: b"evil"})


def zip_with_a_name_twice(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("good.txt", "good")
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("good.txt", "evil")
    return path


HOSTILE = [
    ("x.zip", named("../../evil"), "leads out"),
    ("x.zip", named("a/../../evil"), "leads out"),
    ("x.zip", named("..\\..\\evil"), "leads out"),
    ("x.zip", named("/etc/evil"), "absolute"),
    ("x.zip", named("C:\\evil"), "absolute"),
    ("x.zip", named("n" * 300), "255 bytes"),
    ("x.zip", named("good.txt/evil"), "a folder"),
    ("x.zip", zip_with_link, "a link"),
    ("x.zip", zip_with_a_name_twice, "repeats"),
    ("x.tar", named("../evil", tarred), "leads out"),
    ("x.tar", named("/evil", tarred), "absolute"),
    ("x.tar", odd(tarfile.SYMTYPE), "a link"),
    ("x.tar", odd(tarfile.LNKTYPE), "a link"),
    ("x.tar", odd(tarfile.CHRTYPE), "a device"),
    ("x.tar", odd(tarfile.FIFOTYPE), "a device"),
]


@pytest.mark.parametrize(("name", "write", "reason"), HOSTILE)
def test_hostile_entry_is_refused_and_the_rest_is_read(
    tmp_path: Path, name: str, write: Callable[[Path], Path], reason: str
) -> None:
    (tmp_path / "deep/in").mkdir(parents=True)
    write(tmp_path / "deep/in" / name)
    found = unpack(tmp_path / "deep/in")
    assert found.root == tmp_path / "deep/in.unpacked"
    assert tree(found.root) == {"x/good.txt": b"good"}
    assert len(found.refused) == 1
    assert reason in found.refused[0][1]
    assert [
        p.name for p in (tmp_path / "deep").rglob("*") if p.is_file() and found.root not in p.parents
    ] == [name]
    assert os.listdir(tmp_path) == ["deep"]
    assert not any(p.is_symlink() for p in found.root.rglob("*"))


def test_names_that_are_not_utf8_are_unpacked_and_then_quarantined(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    image = Cutter(real_ihc).write(tmp_path / "1.png").read_bytes()
    tarred(tmp_path / "in/test.tar", {"Tumor/0001-CD3-1-1.png": image, "Tumor/0001-CD3-1-\udcff.png": image})
    report = prepare(load_card("mihic"), tmp_path / "in", tmp_path / "out")
    assert (report.read, len(report.quarantined)) == (1, 1)
    assert report.found == 2 + report.passed_over.total()  # hidden files of the unpacking
    assert [reason for _, reason in report.quarantined] == ["the name is not UTF-8"]


def test_bombs_stop_before_they_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SLACK", 1 << 20)
    zipped(tmp_path / "flat/x.zip", {"zeros": bytes(20 << 20)})
    layer = zipped(tmp_path / "l.zip", {"zeros": bytes(700 << 10)}).read_bytes()
    zipped(tmp_path / "nested/x.zip", {f"{i}.zip": layer for i in range(20)})
    for kind in ("flat", "nested"):
        with pytest.raises(DatasetError) as refused:
            unpack(tmp_path / kind)
        assert (refused.value.where, refused.value.key) == (tmp_path / kind / "x.zip", "size")
        assert sum(len(data) for data in tree(tmp_path / f"{kind}.unpacked").values()) < 16 << 20
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    zipped(tmp_path / "many/x.zip", FILES)
    with pytest.raises(DatasetError) as refused:
        unpack(tmp_path / "many")
    assert refused.value.key == "size"


def test_archives_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    data = zipped(tmp_path / "0.zip", FILES).read_bytes()
    for i in range(4):
        data = zipped(tmp_path / f"{i}.zip", {"x.zip": data}).read_bytes()
    zipped(tmp_path / "in/x.zip", {"x.zip": data})
    with pytest.raises(DatasetError) as refused:
        unpack(tmp_path / "in")
    assert (refused.value.where, refused.value.key) == ("x.zip!x.zip!x.zip!x.zip!x.zip", "depth")


def test_encrypted_truncated_and_mistaken_archives_are_errors_that_name_the_archive(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path / "x.zip", {"a": b"aaaa"}).read_bytes())
    data[6] |= 1  # the flag that says encrypted, in the local header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/x.zip").write_bytes(bytes(data))
    with pytest.raises(DatasetError) as refused:
        unpack(tmp_path / "locked")
    assert refused.value.key == "password"
    noise = np.random.default_rng(0).bytes(200_000)
    for name, write in (("x.zip", zipped), ("x.tar.gz", tarred), ("y.zip", zipped)):
        path = write(tmp_path / f"broken-{name}/{name}", {"a": noise})
        whole = bytearray(path.read_bytes())
        if name == "y.zip":
            whole[1000:1100] = bytes(100)
        path.write_bytes(whole if name == "y.zip" else whole[: len(whole) // 2])
        with pytest.raises(DatasetError) as refused:
            unpack(path.parent)
        assert (refused.value.where, refused.value.key) == (path, "content")
    (tmp_path / "page").mkdir()
    (tmp_path / "page/x.zip").write_text("<html>not found</html>")
    assert unpack(tmp_path / "page").refused == [("x.zip", "it has an archive's name but is none")]


def test_link_and_pipe_with_the_name_of_an_archive_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "in"
    zipped(root / "a.zip", FILES)
    (root / "lost.zip").symlink_to("nowhere")
    os.mkfifo(root / "pipe.zip")
    found = unpack(root)
    assert {key for key, _ in found.refused} == {"lost.zip", "pipe.zip"}
    assert tree(found.root) == {f"a/{path}": data for path, data in FILES.items()}


def test_disk_without_room_is_an_error_before_anything_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "in/x.zip", FILES)
    monkeypatch.setattr("his2lip.data.prepare.unpack.RESERVE", 1 << 60)
    with pytest.raises(DatasetError) as refused:
        unpack(tmp_path / "in")
    assert (refused.value.where, refused.value.key) == (tmp_path / "in/x.zip", "--unpack-to")
    assert tree(tmp_path / "in.unpacked") == {}


def test_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    zipped(tmp_path / "in/x.zip", FILES)
    with pytest.raises(DatasetError) as refused:
        unpack(tmp_path / "in", "/proc/none")
    assert (refused.value.where, refused.value.key) == (Path("/proc/none"), "--unpack-to")
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(DatasetError) as refused:
        unpack(tmp_path / "file.bin")
    assert refused.value.where == tmp_path / "file.bin"


@pytest.mark.parametrize("name", ["her2-ihc-40x", "bcdata"])
def test_dataset_prepared_from_its_archives_is_the_one_prepared_from_its_files(
    tmp_path: Path, real_ihc: np.ndarray, name: str
) -> None:
    write_layout(
        name, tmp_path / "plain", lambda side, *_: np.tile(real_ihc, (2, 2, 1))[:side, :side], each=1
    )
    for folder in sorted((tmp_path / "plain").glob("*/*")):  # nested zips: one a folder, in one for all
        at = tmp_path / "inner" / folder.parent.name / folder.name
        at.parent.mkdir(parents=True, exist_ok=True)
        shutil.make_archive(str(at), "zip", folder)
    for folder in sorted((tmp_path / "inner").iterdir()):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.make_archive(str(tmp_path / "in" / folder.name), "gztar", folder)
    card = load_card(name)
    plain = prepare(card, tmp_path / "plain", tmp_path / "a")
    report = prepare(card, tmp_path / "in", tmp_path / "b")
    assert report.quarantined == []
    assert report.info.digest == plain.info.digest
