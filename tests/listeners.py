"""Which addresses a process and its descendants listen on, read from /proc (Linux)."""

from __future__ import annotations

import ipaddress
import sys
from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"  # the state of a socket in /proc/net/tcp


def listeners(root: int) -> set[tuple[str, str]]:
    """(process, address) of every TCP port that process `root` and its descendants listen on now."""
    addresses = {inode: ip for table in ("tcp", "tcp6") for inode, ip in _listening(table)}
    found = set()
    for process in (root, *_descendants(root)):
        with suppress(OSError):  # it has ended meanwhile
            name = Path(f"/proc/{process}/comm").read_text().strip()
            for file in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    target = str(file.readlink())
                    if target.startswith("socket:["):
                        inode = target.removeprefix("socket:[").removesuffix("]")
                        if inode in addresses:
                            found.add((name, addresses[inode]))
    return found


def _listening(table: str) -> list[tuple[str, str]]:
    """(inode, address) of the listening sockets of a table of /proc/net."""
    found = []
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN:
            words = bytes.fromhex(fields[1].partition(":")[0])
            # The kernel prints words of 32 bits in the machine's byte order.
            parts = [words[i : i + 4] for i in range(0, len(words), 4)]
            if sys.byteorder == "little":
                parts = [part[::-1] for part in parts]
            address = ipaddress.ip_address(b"".join(parts))
            mapped = getattr(address, "ipv4_mapped", None)
            found.append((fields[9], str(mapped or address)))
    return found


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError):
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(place.name))
    found, waiting = [], [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found
