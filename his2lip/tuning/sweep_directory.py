"""The folder of a sweep, or its objects on an object store: study, trials' checkpoints, log and plots."""

from __future__ import annotations

import atexit
import re
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from his2lip.config import digest
from his2lip.errors import RunError
from his2lip.files import (
    answers,
    fetch_file,
    filesystem,
    in_folder,
    locked,
    read_object,
    remove_file,
    remove_folder,
    store_file,
    write_file,
)
from his2lip.logs import LOG_FILE, log_to
from his2lip.models import fetch_stored, store_checkpoint
from his2lip.runtime import is_local, on_nodes, session_folder
from his2lip.tuning.plots import PLOTS

if TYPE_CHECKING:
    from his2lip.tuning.log_lines import LogLines

STUDY = "study.db"
CONFIG = "sweep.yaml"
DRIVER = "driver"  # on an object store: the object that has the key of the driver that writes
TRIALS = "trials"  # folder of the trials, each in a folder of its name
HANGS = "hung"  # folder of what hung trials were doing, each in a file of the trial's name
SCRATCH = "ray"  # folder of what is removed when the sweep ends: Tune's state, decoded batches
BEST = "best"  # folder of the checkpoint of a trial

T = TypeVar("T")
_LOCK = "lock"
_OF_DRIVER = re.compile(r"\d+-[0-9a-f]{8}")  # the name of a trial that a driver's key is part of
_NODE_S = 60.0  # to wait for the answers of all nodes


class SweepDir:
    """storage/tune/NAME: study.db, sweep.yaml, the log, the plots, and the trials with their checkpoints.

    A trial has a name here, which its study knows: its number, on an object store with its driver's key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """The folder in which this process works."""
        return self._path

    @property
    def shared(self) -> str:
        """The path or URI that all nodes see."""
        return str(self.path)

    @property
    def scratch(self) -> Path:
        return self.path / SCRATCH

    def new_trial(self, number: int) -> str:
        """The name of a trial that this driver starts."""
        return str(number)

    def trial(self, name: str) -> Path:
        """The folder in which a trial works."""
        return self.path / TRIALS / name

    def trial_storage(self, name: str) -> str:
        """The folder or URI in which a trial with several workers trains, which all nodes see."""
        return f"{self.shared}/{TRIALS}/{name}"

    def address(self, name: str) -> str:
        """The name by which other commands load the checkpoint of a trial."""
        return str(self.trial(name) / BEST)

    def hang(self, name: str) -> Path:
        """The file of what a hung trial was doing."""
        return self.path / HANGS / f"{name}.txt"

    def hang_address(self, name: str) -> str:
        """Where the user finds the file `hang`."""
        return f"{self.shared}/{HANGS}/{name}.txt"

    @contextmanager
    def collected_log(self) -> Iterator[None]:
        """The log has the lines of the trials that run in the block; here, they write into it."""
        yield

    def log_trials(self) -> None:
        """From now on this process, which runs trials, writes into the sweep's log."""
        log_to(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the sweep against a second command. Raises RunError where another one has the lock."""
        busy = RunError(
            "this sweep is being run by another process", where=self.shared, fix="wait for it, or stop it"
        )
        with locked(self.path / _LOCK, busy=busy):
            yield

    def store(self) -> None:
        """Stores what the driver has written where the sweep is; here, it is there."""

    def keep(self, name: str) -> None:
        """Stores the checkpoint that a trial of this process has written since the last call."""

    def release(self, name: str) -> None:
        """Removes the folder of a trial of this process that has ended, where it is needed no more."""

    def remove_trials(self, names: Collection[str]) -> None:
        """Removes what these trials have written."""
        for name in self._trials().intersection(names):  # few are there; most were removed before
            remove_folder(f"{self.shared}/{TRIALS}/{name}")

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raises RunError for trials that the study does not know: new ones would have their numbers."""
        self._refuse({name for name in self._trials() if name.isdecimal()}.difference(known))

    def _refuse(self, unknown: Collection[str]) -> None:
        if unknown:
            what = f"this sweep has trials that its study does not know, such as {min(unknown)}"
            fix = f"put its {STUDY} or database back, give the sweep another name, or remove it with --fresh"
            raise RunError(what, where=f"{self.shared}/{TRIALS}", key="study", fix=fix)

    def remove_unknown(self, known: Collection[str]) -> None:
        """Removes what trials of earlier drivers have written that the study does not know; here, nothing."""

    def _trials(self) -> set[str]:
        """The names of the trials that have written something which was not removed."""
        system, root = filesystem(self.shared)
        return {info.base_name for info in in_folder(system, f"{root}/{TRIALS}")}

    def best(self, name: str) -> Path | None:
        """The checkpoint of a trial on this machine; None where there is none."""
        folder = self.trial(name) / BEST
        return folder if folder.is_dir() else None

    def collect_hang(self, name: str) -> None:
        """Brings the file `hang` of a process that has ended to where the next one finds it."""

    def fetch_hang(self, name: str) -> None:
        """Brings the file `hang` that was collected to this machine."""

    def remove_scratch(self) -> None:
        """Removes what a call of `run_sweep` needs on the machines only while it runs."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def clear(self) -> None:
        """Removes the trials and plots of an earlier sweep of this name.

        Raises StorageError where that fails: a new trial would find the checkpoint of an earlier one.
        """
        for name in (TRIALS, HANGS, PLOTS):
            remove_folder(f"{self.shared}/{name}", whole=True)


class StoredSweep(SweepDir):
    """A sweep on an object store: below `place` the driver's files and trials/NAME/best.tar, whole objects.

    Only the driver writes the study. Each process works in a folder of its machine, which is in the folder of
    Ray's session. An object store has no locks: a second command is refused only on the same machine and Ray.
    Elsewhere it takes over: it writes its key into the object `driver`. The earlier driver and its trials,
    which find another key there, store and remove no more. What they are storing then is no other trial's,
    because the key is part of the names of a driver's trials.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._kept: dict[str, tuple[int, int]] = {}  # the folders of checkpoints that are stored
        self._key = ""  # of this driver, which its trials have too
        self._fetched: tuple[int | None, int | None] | None = None  # the study that this driver began with
        self._writes = False  # whether this driver has written its key
        self._lines: LogLines | None = None

    @property
    def path(self) -> Path:
        return session_folder() / "his2lip" / digest(self._place)[:16]

    @property
    def shared(self) -> str:
        return self._place

    def new_trial(self, number: int) -> str:
        return f"{number}-{self._key}"

    def address(self, name: str) -> str:
        return f"{self.trial_storage(name)}/{BEST}.tar"

    @contextmanager
    def collected_log(self) -> Iterator[None]:
        """On a cluster, the trials send their lines to this driver, whichever machine they are on."""
        if is_local():
            yield
            return
        from his2lip.tuning.log_lines import LogLines

        self._lines = LogLines()
        try:
            yield
        finally:
            self._lines.append_to(self.path / LOG_FILE)
            self._lines = None

    def log_trials(self) -> None:
        if self._lines is None:
            super().log_trials()
        else:
            self._lines.send()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Fetches the study and the log; raises RunError where a second command runs in this Ray here."""
        with super().locked():
            for path in self.path.iterdir():  # what a killed command left
                if path.name != _LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            atexit.register(_leave, self.path)
            system, root = filesystem(self._place)
            self._key, self._writes = uuid.uuid4().hex[:8], False
            self._fetched = self._stored_study()  # first: what is written from now on is another driver's
            for name in (STUDY, LOG_FILE):
                with suppress(FileNotFoundError):
                    fetch_file(system, f"{root}/{name}", self.path / name)
            yield

    def store(self) -> None:
        """Stores log, configuration, plots and study. The study is a copy that SQLite makes, never torn.

        The first call takes the sweep over. Raises RunError where another driver has done so since, or has
        written the study since this one fetched it.
        """
        if not self._writes:
            if self._stored_study() != self._fetched:
                raise self._taken_over()
            self._take_over()
        self._check_alone()
        system, root = filesystem(self._place)
        if self._lines is not None:
            self._lines.append_to(self.path / LOG_FILE)
        for file in (self.path / LOG_FILE, self.path / CONFIG, *(self.path / PLOTS).glob("*")):
            if file.is_file():
                store_file(system, file, f"{root}/{file.relative_to(self.path).as_posix()}")
        if (self.path / STUDY).is_file():  # else it is in another database
            with tempfile.TemporaryDirectory(prefix="his2lip-") as made:
                store_file(system, copy_database(self.path / STUDY, Path(made, STUDY)), f"{root}/{STUDY}")

    def remove_trials(self, names: Collection[str]) -> None:
        """As in a folder. Raises RunError where another driver has taken over: its study may have them."""
        self._check_alone()
        super().remove_trials(names)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raises RunError for trials without a study. Beside one, they are of a driver that was killed."""
        if self._fetched is None and not known:
            self._refuse(self._trials())

    def remove_unknown(self, known: Collection[str]) -> None:
        """As described. Those of this driver have not begun, and later drivers' are not there yet."""
        self.remove_trials({name for name in self._trials() if _OF_DRIVER.fullmatch(name)}.difference(known))

    def _take_over(self) -> None:
        system, root = filesystem(self._place)
        with answers(self._place):
            write_file(system, f"{root}/{DRIVER}", self._key.encode())
        self._writes = True

    def _check_alone(self) -> None:
        """Raises RunError where another driver has taken over from this one, or from that of this trial."""
        if self._writes:
            system, root = filesystem(self._place)
            if read_object(system, f"{root}/{DRIVER}") != self._key.encode():
                raise self._taken_over()

    def _taken_over(self) -> RunError:
        what = "another command is running this sweep"
        fix = "let it end; the same command then resumes the sweep"
        return RunError(what, where=self._place, key="storage", fix=fix)

    def _stored_study(self) -> tuple[int | None, int | None] | None:
        """When the stored study was written, in ns, and its bytes; None where there is none."""
        system, root = filesystem(self._place)
        with answers(self._place):
            found = system.get_file_info(f"{root}/{STUDY}")
        return (found.mtime_ns, found.size) if found.is_file else None

    def keep(self, name: str) -> None:
        """As described. Raises RunError where another driver has taken over from the driver of the trial."""
        folder = self.trial(name) / BEST
        if not folder.is_dir():
            return
        written = folder.stat()
        state = (written.st_ino, written.st_mtime_ns)  # a new checkpoint is a new folder
        if self._kept.get(name) != state:
            self._check_alone()
            store_checkpoint(folder, self.address(name))
            self._kept[name] = state

    def release(self, name: str) -> None:
        shutil.rmtree(self.trial(name), ignore_errors=True)

    def best(self, name: str) -> Path | None:
        folder = self.trial(name) / BEST
        if not folder.is_dir():
            fetch_stored(self.address(name), folder)
        return super().best(name)

    def collect_hang(self, name: str) -> None:
        texts = [_hang_text(self, name)] if is_local() else _answers(_hang_text, self, name)
        if text := next(filter(None, texts), ""):
            file = self.hang(name)
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            system, root = filesystem(self._place)
            store_file(system, file, f"{root}/{HANGS}/{file.name}")

    def fetch_hang(self, name: str) -> None:
        system, root = filesystem(self._place)
        with suppress(FileNotFoundError):
            fetch_file(system, f"{root}/{HANGS}/{name}.txt", self.hang(name))

    def remove_scratch(self) -> None:
        if is_local():
            _remove_here(self)
        else:
            _answers(_remove_here, self)

    def clear(self) -> None:
        if not self._writes:
            self._take_over()
        system, root = filesystem(self._place)
        remove_file(system, f"{root}/{STUDY}")  # first: a study has the checkpoints that it names
        super().clear()


def open_sweep(storage: str, name: str) -> SweepDir:
    """The sweep STORAGE/tune/NAME, where `storage` is a folder or the URI of an object store."""
    if "://" in storage:
        return StoredSweep(f"{storage.rstrip('/')}/tune/{name}")
    return SweepDir((Path(storage) / "tune" / name).resolve())


@contextmanager
def study_at(place: str) -> Iterator[str | None]:
    """The URL of the study of the sweep in the folder or at the URI `place`; None where there is none.

    Of a study on an object store it is a copy, which is removed at the end of the block.
    """
    with tempfile.TemporaryDirectory(prefix="his2lip-") as made:
        file = Path(place, STUDY).resolve()
        if "://" in place:
            system, root = filesystem(place)
            file = Path(made, STUDY)
            with suppress(FileNotFoundError):
                fetch_file(system, f"{root}/{STUDY}", file)
        yield f"sqlite:///{file}" if file.is_file() else None


def copy_database(file: Path, copy: Path) -> Path:
    """Copies a SQLite database that other connections may be writing, as it was at one moment."""
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def _answers(work: Callable[..., T], *arguments: object) -> list[T]:
    """What the nodes of the cluster answer, without those that are lost."""
    import ray

    asked = [*on_nodes(work, *arguments).values()]
    found: list[T] = []
    for answer in ray.wait(asked, num_returns=len(asked), timeout=_NODE_S)[0]:
        with suppress(ray.exceptions.RayError):
            found.append(ray.get(answer))
    return found


def _hang_text(sweep: StoredSweep, name: str) -> str:
    """What a hung trial on this machine was doing; empty for none."""
    file = sweep.hang(name)
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _remove_here(sweep: StoredSweep) -> None:
    """Removes the trials and scratch of a sweep on this machine; all of it where the driver is elsewhere."""
    for name in (TRIALS, HANGS, SCRATCH):
        shutil.rmtree(sweep.path / name, ignore_errors=True)
    if not (sweep.path / _LOCK).exists():
        shutil.rmtree(sweep.path, ignore_errors=True)


def _leave(path: Path) -> None:
    """Removes the driver's folder, unless another driver uses it meanwhile."""
    if path.is_dir():
        with suppress(RunError, OSError), locked(path / _LOCK, busy=RunError("in use")):
            shutil.rmtree(path)
