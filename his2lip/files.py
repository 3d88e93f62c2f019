"""Files: the file system behind a path or URI, local copies, atomic writes, locks, printable paths."""

from __future__ import annotations

import atexit
import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from his2lip.errors import DatasetError, His2lipError, StorageError, first_line

T = TypeVar("T")
_ANSWER_S = 5.0  # to wait for a server to answer at all
_MOMENT_S = 1.0  # for which a lock may be taken without that its owner works
_OWNER = ".owner"  # the file in a temporary folder that its process has locked
_TAKEN = ".old.tmp"  # end of the name of what only has to be removed
_COPY_BYTES = 8 << 20  # that are copied at a time
_AGAIN_S = (1.0, 5.0, 25.0, 60.0)  # waits before a store that failed is tried again
_OBJECT_STORES = ("s3", "gcs", "abfs")  # Arrow's own

# What stores say where another attempt cannot succeed: Arrow's names of AWS's errors, and others' words.
_REFUSED = re.compile(
    r"AWS Error (?:NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|"
    r"INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|REQUEST_TIME_TOO_SKEWED|"
    r"UNKNOWN \(HTTP status (?:3\d\d|4(?!08|29)\d\d)\))|"
    r"\bBucket '.*' not found\b|\b(?:PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND)\b|"
    r"\b(?:ContainerNotFound|AuthenticationFailed|AuthorizationFailure|AuthorizationPermissionMismatch)\b"
)
_REFUSALS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # raised by file systems that have no locks

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not be larger here",
}
# How libraries that raise no OSError quote the number of a system error: Rust code as safetensors, MLflow.
_QUOTED = re.compile(r"(?:\bos error |\[Errno )(\d+)\b")

# Written by Windows, macOS's archiver, Synology and Linux; other such names are hidden, as .DS_Store and ._x.
_LITTER = (
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "__macosx",
    "@eadir", "#recycle", "lost+found",
)  # fmt: skip


@contextmanager
def locked(lock: Path, *, busy: His2lipError | None = None) -> Iterator[None]:
    """Runs the block while this process has the file `lock`, created with its folder where it is missing.

    The system releases the lock when the process ends, also when it is killed. Where another process has it
    for longer than `is_locked` and `gc --remove` have one, `busy` is raised; without `busy`, this call waits.
    On a file system without locks the block runs unlocked. Raises OSError where the file cannot be created.
    """
    from filelock import FileLock, Timeout

    file = FileLock(lock, timeout=-1 if busy is None else _MOMENT_S, fallback_to_soft=False)
    with ExitStack() as stack:
        try:
            try:
                stack.enter_context(file)
            except (FileNotFoundError, FileExistsError):  # gc has removed the folder meanwhile
                stack.enter_context(file)
        except Timeout:
            assert busy is not None
            raise busy from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def is_locked(lock: Path) -> bool:
    """Whether another process has the lock of this file, which need not exist. Nothing is written."""
    import fcntl

    try:
        with lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno not in _NO_LOCKS
    return False


def own_folder() -> Path:
    """A new temporary folder, which is removed when this process ends.

    What processes of this user and machine left that were killed is removed first. A process has the lock of
    its folder until it ends, however it ends. On a file system without locks nothing is found or removed.
    """
    import fcntl

    prefix = f"his2lip-of-{re.sub('[^a-z0-9]', '-', socket.gethostname().lower())}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError), (left / _OWNER).open("rb+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with suppress(OSError):
        # The file has its name only once it is locked, so that no other process takes it for a left one.
        new = folder / f"{_OWNER}.new"
        descriptor = os.open(new, os.O_CREAT | os.O_RDWR)  # open until the process ends
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        new.rename(folder / _OWNER)
    return folder


def absolute(place: str) -> str:
    """A local path as an absolute one; URIs stay as they are. Other processes may run in other folders."""
    return place if "://" in place else os.path.abspath(place)


def filesystem(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """The file system behind a local path or a URI (s3, gs, or any fsspec scheme), and the path on it.

    Raises DatasetError for an empty one, an unknown scheme, or a store that does not answer.
    """
    text = str(uri)
    if not text:
        fix = "give a folder or an address; a shell variable that is not set is empty"
        raise DatasetError("the folder or address is empty", key="uri", fix=fix)
    if not is_utf8(text):
        what = "the folder or address is not UTF-8"
        raise DatasetError(what, where=printable(text), key="uri", fix="give it another name")
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).absolute())
    if text.startswith("://"):
        raise DatasetError("this address has no scheme", where=text, fix="such as s3://BUCKET/PATH")
    if text.startswith(("gs://", "gcs://")):
        _check_google_credentials(text)
    try:
        return fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    except OSError as error:
        said = f"this store cannot be reached: {first_line(error)}"
        raise DatasetError(said, where=text, fix="check bucket, network and rights") from None
    try:
        from fsspec.core import url_to_fs

        options = {"timeout": _ANSWER_S} if text.startswith("ftp://") else {}
        store, path = url_to_fs(text, **options)
    except Exception as error:  # fsspec's drivers raise errors of any type for parts that an address lacks
        what = f"this address cannot be used: {first_line(error)}"
        raise DatasetError(
            what, where=text, fix="check its host, its bucket or repository, and its path"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(store)), path.rstrip("/")


def _check_google_credentials(uri: str) -> None:
    """Raises DatasetError for gs:// without credentials; Arrow would try for minutes to find some."""
    known = Path("~/.config/gcloud/application_default_credentials.json").expanduser()
    given = any(part in uri for part in ("://anonymous@", "endpoint_override="))
    if given or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or known.is_file():
        return
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")  # on machines of Google's cloud
    host, _, port = server.partition(":")
    try:
        socket.create_connection((host, int(port or 80)), timeout=_ANSWER_S).close()
    except (OSError, ValueError):
        fix = "gcloud auth application-default login, or gs://anonymous@BUCKET/… for a public bucket"
        raise DatasetError("there are no Google credentials on this machine", where=uri, fix=fix) from None


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_disk(*paths: Path) -> None:
    """Waits until files and folders are on the disk, so that a loss of power does not undo their writing."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def free_bytes(place: str) -> int | None:
    """Bytes that are free on the disk of a folder, which need not exist yet; None for a URI."""
    if "://" in place:
        return None
    folder = Path(place).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def at_hand(place: str) -> Iterator[Path]:
    """The folder `place` on this machine: itself, or a copy of a folder on an object store.

    Files that the block has written or changed in a copy are stored when it ends without an error, each as a
    whole object. An object store has no locks: where two write the same file, the later one stays.
    """
    if "://" not in place:
        yield Path(place)
        return
    system, root = filesystem(place)
    with tempfile.TemporaryDirectory(prefix="his2lip-") as made:
        folder = Path(made)
        fetch_folder(system, root, folder)
        before = _states(folder)
        yield folder
        for name, state in _states(folder).items():
            if before.get(name) != state:
                store_file(system, folder / name, f"{root}/{name}")


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """The files below a folder by their relative paths, with what changes where one is written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files and folders below a folder, each with its `lstat`; what vanishes meanwhile is left out.

    Links are not followed. `Path.rglob` raises where another process removes a folder.
    """
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            with suppress(FileNotFoundError):
                yield path, path.lstat()


def set_aside(path: Path) -> Path:
    """The name of what only has to be removed, which a file or folder gets where there is one."""
    taken = path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex[:8]}{_TAKEN}")
    with suppress(FileNotFoundError):
        path.rename(taken)
    return taken


def discard(path: Path) -> None:
    """Removes a file or folder where there is one, renamed first: no process finds or fills half of it."""
    taken = path if path.name.endswith(_TAKEN) else set_aside(path)
    with suppress(FileNotFoundError):
        shutil.rmtree(taken) if taken.is_dir() and not taken.is_symlink() else taken.unlink()


def in_folder(system: fs.FileSystem, path: str, *, recursive: bool = False) -> list[fs.FileInfo]:
    """What is in a folder of `system`, with `recursive` at any depth; nothing where there is no such folder.

    Raises StorageError, as `answers`.
    """
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    with answers(path):
        try:
            return system.get_file_info(selector)
        # Arrow looks into the folder, then whether it exists: it raises where another process creates it in
        # between. The second time it is there.
        except (FileNotFoundError, NotADirectoryError):
            return system.get_file_info(selector)


def fetch_folder(system: fs.FileSystem, root: str, folder: Path) -> bool:
    """Copies every file below `root` into `folder`; whether there was any. Raises as `answers`."""
    found = in_folder(system, root, recursive=True)
    files = [info.path for info in found if info.type == fs.FileType.File]
    for path in files:
        fetch_file(system, path, folder / path.removeprefix(root).lstrip("/"))
    return bool(files)


def fetch_file(system: fs.FileSystem, path: str, file: Path) -> Path:
    """Copies a file of `system` to the local `file`, and returns that.

    Raises FileNotFoundError where there is none, and StorageError, as `answers`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    local = writing(f"a copy of {path}", file)
    with answers(path), system.open_input_stream(path) as source, local, file.open("wb") as copy:
        shutil.copyfileobj(source, copy, _COPY_BYTES)
    return file


def read_file(system: fs.FileSystem, path: str) -> bytes:
    """The bytes of a file of `system`.

    Raises FileNotFoundError where there is none, and StorageError, as `answers`.
    """
    with answers(path):
        try:
            with system.open_input_stream(path) as source:
                return bytes(source.read())
        except NotADirectoryError:  # what it would be in is a file
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None


def remove_file(system: fs.FileSystem, path: str) -> None:
    """Removes a file of `system` where there is one. Raises StorageError, as `answers`."""
    with suppress(FileNotFoundError), answers(path):
        system.delete_file(path)


@contextmanager
def answers(where: str) -> Iterator[None]:
    """Raises StorageError where the store at the address `where` fails in the block: it is away, or refuses.

    FileNotFoundError is raised as it is.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        fix = "check the store, its network and your rights, and run the same command again"
        what = f"this store cannot be used: {first_line(error)}"
        raise StorageError(what, where=where, key="store", fix=fix) from None


def store_file(system: fs.FileSystem, file: Path, path: str) -> None:
    """Writes a local file as one object: readers see the old object or the new one, whole.

    An object store shows an object once it is complete; elsewhere the file is renamed when it is complete.
    The copy is one call of Arrow, which an interrupt of this process cannot cut in two.
    A store that does not answer is asked again for a minute and a half, and a warning says so. Raises
    StorageError where it still does not, where it refuses, such as for a bucket that does not exist, or where
    the disk is full.
    """
    whole = path if system.type_name in _OBJECT_STORES else f"{path}.{uuid.uuid4().hex}.tmp"

    def store() -> None:
        system.create_dir(path.rpartition("/")[0], recursive=True)
        fs.copy_files(
            str(file), whole, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system,
            chunk_size=_COPY_BYTES,
        )  # fmt: skip
        if whole != path:
            system.move(whole, path)

    patiently(store, f"{file.name} cannot be stored", path)


def read_object(system: fs.FileSystem, path: str) -> bytes | None:
    """The content of a small object; None where there is none. It waits for the store, as `store_file`."""

    def read() -> bytes | None:
        with suppress(FileNotFoundError), system.open_input_stream(path) as source:
            return bytes(source.read())
        return None

    return patiently(read, f"{path.rpartition('/')[2]} cannot be read", path)


def patiently(attempt: Callable[[], T], failed: str, path: str) -> T:
    """What `attempt` returns; it is tried again, and an error is raised, as `store_file` describes.

    `failed` is what cannot be done, such as "this shard cannot be read", and `path` where.
    """
    waits = (*_AGAIN_S, None)
    tried = 0
    while True:
        try:
            return attempt()
        except OSError as error:
            if (full := disk_full(error, what=path.rpartition("/")[2], where=path)) is not None:
                raise full from None
            wait = waits[tried]
            if wait is None or isinstance(error, _REFUSALS) or _REFUSED.search(str(error)):
                fix = "check the store, its network and your rights, and run the same command again"
                what = f"{failed}: {first_line(error)}"
                raise StorageError(what, where=path, key="store", fix=fix) from None
            if not tried:
                _log.warning(
                    "%s now and is tried again, at most for %.0f s: %s (%s)",
                    failed, sum(_AGAIN_S), first_line(error), path,
                )  # fmt: skip
            tried += 1
            time.sleep(wait)


def remove_folder(place: str, *, whole: bool = False) -> None:
    """Removes a folder with its content, also on an object store, where there is one.

    What cannot be removed stays; with `whole`, StorageError is raised then.
    """
    with suppress(FileNotFoundError), suppress(*(() if whole else (StorageError,))), answers(place):
        if "://" not in place:
            shutil.rmtree(place, ignore_errors=not whole)
            return
        system, root = filesystem(place)
        system.delete_dir(root)


def write_file(system: fs.FileSystem, path: str, data: bytes, *, what: str = "a file") -> None:
    """Writes under another name, then renames: a reader sees the whole file or none.

    `what` names the content. Raises StorageError where the disk is full.
    """
    with writing(what, path):
        try:
            _write_file(system, path, data)
        except (FileNotFoundError, FileExistsError):  # gc has removed its folder meanwhile
            _write_file(system, path, data)


def _write_file(system: fs.FileSystem, path: str, data: bytes) -> None:
    system.create_dir(path.rpartition("/")[0], recursive=True)
    waiting = f"{path}.{uuid.uuid4().hex}.tmp"  # two that write the same file do not meet
    try:
        with system.open_output_stream(waiting) as out:
            out.write(data)
        system.move(waiting, path)
    except BaseException:
        with suppress(OSError):  # it is not there, or the store does not answer
            system.delete_file(waiting)
        raise


@contextmanager
def writing(what: str, where: str | Path) -> Iterator[None]:
    """Raises StorageError where the block cannot write `what` because its disk is full.

    `where` is the file or folder that is written. Other errors are raised as they are.
    """
    try:
        yield
    except Exception as error:
        raise (disk_full(error, what=what, where=where) or error) from None


def disk_full(error: BaseException, *, what: str, where: str | Path | None) -> StorageError | None:
    """The StorageError for an error of the system or a library that a full disk caused; None for another."""
    quoted = _QUOTED.search(str(error))
    number = int(quoted[1]) if quoted else getattr(error, "errno", None)
    reason = _FULL.get(number) if isinstance(number, int) else None
    if reason is None and "database or disk is full" in str(error):  # SQLite
        reason = _FULL[errno.ENOSPC]
    if reason is None:
        return None
    fix = "make room there and run the same command again; what is complete is kept"
    return StorageError(f"{reason}, so {what} cannot be written", where=where, key="disk", fix=fix)


def check_writable(uri: str | Path, *, fix: str) -> None:
    """Writes and removes a small file below `uri`. Raises DatasetError where that cannot be done."""
    system, root = filesystem(uri)
    probe = f"{root}/.{uuid.uuid4().hex}.tmp"
    try:
        write_file(system, probe, b"")
        system.delete_file(probe)
    except Exception as error:  # besides OSError, what the drivers of Arrow and fsspec raise
        raise not_writable(error, where=uri, fix=fix) from None


def not_writable(error: Exception, *, where: str | Path, fix: str) -> DatasetError:
    return DatasetError(f"nothing can be written here: {first_line(error)}", where=str(where), fix=fix)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or was written by a file manager or server."""
    return name.startswith(".") or name.lower() in _LITTER


def printable(key: str) -> str:
    """A path that can be written down: bytes that are not UTF-8 are shown escaped."""
    return key.encode("utf-8", "backslashreplace").decode() if not is_utf8(key) else key


def is_utf8(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
