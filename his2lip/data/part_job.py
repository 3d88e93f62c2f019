"""One part of a prepare: its files read and cut, what is wrong with them said, its shard written whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from pyarrow import fs

from his2lip.config import digest
from his2lip.data.journal import PartResult
from his2lip.data.listing import Part
from his2lip.data.pseudonyms import Key
from his2lip.data.readers import LeftOut, Reader
from his2lip.data.schema import Patch
from his2lip.data.shard_writer import PartWriter
from his2lip.data.tiling import Tiling
from his2lip.errors import DatasetError, first_line


@dataclass(frozen=True, slots=True)
class _Fault:
    """What was wrong with a file; it comes after the patches that it gave before."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """All that a task needs to write a part, wherever it runs. With `key`, names are hashed on the way."""

    reader: Reader
    tiling: Tiling | None
    key: Key | None
    system: fs.FileSystem
    target: str
    row_group_bytes: int

    def plan(self, parts: list[Part]) -> str:
        """The digest of all that decides what the parts will hold."""
        card, key = self.reader.card.model_dump(mode="json"), self.key.name("plan", "") if self.key else None
        return digest([card, str(self.tiling), self.row_group_bytes, key, [asdict(part) for part in parts]])

    def write(self, part: Part, each: Callable[[], None] = lambda: None) -> PartResult:
        """Reads the files of a part and writes it, whole or not at all; `each` is called after each file.

        Raises DatasetError where it cannot be written; files that cannot be read are quarantined.
        """
        writer = None
        try:
            writer = PartWriter(
                self.system, self.target, part.name, part.split, row_group_bytes=self.row_group_bytes
            )
            result = self._fill(writer, part, each)
            if not result.read:
                writer.discard()
                return result
            return replace(result, info=writer.close())
        except BaseException as error:
            if writer is not None:
                with suppress(OSError):  # a full disk may not even take the end of the file
                    writer.discard()
            if isinstance(error, OSError):
                said = f"the shards cannot be written: {first_line(error)}"
                mend = "mend that; the same command then goes on"
                raise DatasetError(said, where=self.target, mend=mend) from None
            raise

    def _fill(self, writer: PartWriter, part: Part, each: Callable[[], None]) -> PartResult:
        read, quarantined, left_out = 0, [], []
        for key in part.keys:
            took, parts_out, fault = 0, [], None
            for found in self._read(key, part.split):
                if isinstance(found, Patch):
                    writer.add(found)
                    took += 1
                elif isinstance(found, LeftOut):
                    parts_out.append((found.place, found.reason))
                else:
                    fault = found.reason
            left_out += parts_out
            if took:
                read += 1
                left_out += [(key, fault)] if fault else []
            else:
                reason = parts_out[-1][1] if parts_out else "it holds no patch"
                quarantined.append((key, fault or reason))
            each()
        return PartResult(read=read, quarantined=quarantined, left_out=left_out, info=None)

    def _read(self, key: str, split: str) -> Iterator[Patch | LeftOut | _Fault]:
        """What a file gives. Whatever is wrong with it does not stop the others."""
        try:
            item = replace(self.reader.item(key), split=split)
            for found in self.reader.patches(item, self.tiling):
                yield self.key.patch(found) if self.key and isinstance(found, Patch) else found
        except DatasetError as error:
            yield _Fault(error.what)
        except OSError as error:
            yield _Fault(f"the file cannot be read: {error.strerror or first_line(error)}")
        except Exception as error:  # whatever a format's library raises is this one file's fault
            yield _Fault(f"{type(error).__name__}: {error}"[:200])
