"""Seeded damage: YAML texts with faults, odd addresses, and files with flipped, lost or foreign bytes."""

from __future__ import annotations

import random
from typing import Any

import yaml

# Values as they stand in a YAML file, in place of one that a configuration has.
VALUES = (
    *("null", "true", "no", "-1", "0", "1", "3", "0.5", "-0.0", "1e308", "1e3", "1e-320", ".nan", ".inf"),
    *("9" * 5000, str(2**63), str(2**31), "1000000000", "1e12", "0x" + "f" * 40, "1_000", "12:30:45", "0o17"),
    *("2020-99-99", "2020-01-01", '""', '" "', "'" + "a" * 20_000 + "'", '"\\0"', '"\\ud800"', "'\u202e'"),
    *("[]", "{}", "[[1]]", "{a: 1}", "[null]", "[" * 3000 + "]" * 3000, "{a: " * 3000 + "1" + "}" * 3000),
    *("&a [*a]", "*b", "!!python/name:os.system", "!!binary aGk=", "!!set {a}", "!!int many", "|", "? x"),
    *("'../../../etc'", "'/dev/zero'", "'/dev/null'", "'~'", "'$HOME'", "'s3://'", "'gs://b/x'"),
    *("'models:/x@y'", "'hf-hub:'", "'local-dir:'", "'baseline:chance'", "'{}'", "'%s'", "'nan'"),
)
_CHARACTERS = (
    *"\t:-[]{},&*!|>'\"%@`#?\\\n\r 0e.~<",
    *("\0", "\x07", "\x85", "\u2028", "\ufeff", "\u202e", "é", "\U0001f9ec"),
)

ADDRESSES = (
    *("", " ", ".", "..", "~", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/1/root/x"),
    *("a" * 5000, "a/" * 2500, "two\nlines", "nul\0", "\udcff", "-", "--", "*", "{}", "%00", "C:\\x"),
    *("://", "x://", "nonsense://store", "data:,x", "data://x", "file://", "file:///", "file://host/x"),
    *("s3://", "s3:///", "s3://b", "s3://UPPER_case/x", "s3://k:s@b/x?scheme=nonsense"),
    *("s3://b/x?endpoint_override=127.0.0.1:9&scheme=http", "s3://b/x?nonsense=1"),
    *("gs://", "gs://b/x", "gs:///x", "abfs://", "abfs://c@a/x", "az://x", "adl://x"),
    *("hdfs://", "hdfs://127.0.0.1:9/x", "viewfs://x", "ftp://", "ftp:///x", "ftp://127.0.0.1:9/x"),
    *("sftp://", "sftp://127.0.0.1:9/x", "ssh://", "smb://", "http://", "http://127.0.0.1:9/x"),
    *("http://127.0.0.1:99999/x", "https://[::1", "http://a b/c", "http://[::1]:9/x"),
    *("github://", "github://x", "github://org:repo@/x", "git://", "git://x", "hf://", "hf://datasets/x/y"),
    *("memory://", "memory://x", "zip://", "zip://x.zip", "tar://", "tar://x", "simplecache::", "dbfs://x"),
    *("simplecache::s3://", "filecache::http://127.0.0.1:9/x", "jar:file:x", "blockcache::x", "oci://x"),
    *("models:/", "models:/x", "models:/x@y", "models:/x/99999", "models://x", "runs:/x", "runs:/x/best"),
    *("mlflow-artifacts:/x", "sqlite://", "sqlite:///", "sqlite:///.", "sqlite:////dev/null", "sqlite:x"),
    *("sqlite:////proc/x.db", "sqlite:///\0", "sqlite:///a/" + "b" * 300, "sqlite:///x.db?mode=ro"),
    *("postgresql://", "postgresql://127.0.0.1:9/x", "mysql+pymysql://x", "mssql://x", "oracle://x"),
    *("databricks", "databricks://p", "databricks-uc", "uc:x", "local-dir:", "local-dir:/nope"),
    *("hf-hub:", "hf-hub:a", "hf-hub:../../x", "ViT-B-32:", "ViT-B-32:nope", ":openai", "ViT-B-32"),
)


def mutated(text: str, rng: random.Random) -> bytes:
    """A YAML text with one to three changes.

    Half of the texts have faults in their values, keys, lines, characters or bytes. In the others only
    numbers, switches and the order of keys change, so that many of them are valid.
    """
    faults = (_other_value, _other_value, _other_key, _other_lines, _other_characters)
    gentle = rng.random() < 0.5
    for _ in range(rng.randint(1, 3)):
        change = rng.choice((_near_value, _near_value, _other_order) if gentle else faults)
        try:
            text = change(text, rng)
        except (yaml.YAMLError, ValueError, IndexError, RecursionError):  # an earlier fault left no mapping
            text = _other_characters(text, rng)
    data = text.encode("utf-8", "surrogatepass")
    encodings = (_damage_none,) if gentle else (_other_encoding, _damage_none, _damage_none, _damage_none)
    return rng.choice(encodings)(data, rng)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file's content with a flipped bit, lost, foreign, repeated or exchanged bytes, or another content."""
    return rng.choice(
        (_flip, _flip, _flip, _overwrite, _zeros, _cut, _cut, _lose, _append, _exchange, _replace)
    )(data, rng)


def _other_value(text: str, rng: random.Random) -> str:
    tree = yaml.safe_load(text)
    parent, key = rng.choice(list(_places(tree)))
    parent[key] = "@VALUE@"
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).replace("'@VALUE@'", rng.choice(VALUES))


def _near_value(text: str, rng: random.Random) -> str:
    """Another number or switch of the same kind, such as 32 in place of 16."""
    tree = yaml.safe_load(text)
    parent, key = rng.choice([(p, k) for p, k in _places(tree) if isinstance(p[k], bool | int | float)])
    value = parent[key]
    if isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, int):
        parent[key] = rng.choice((value + 1, 2 * value, value // 2))
    else:
        parent[key] = value * rng.choice((0.5, 0.9, 1.5))
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _other_order(text: str, rng: random.Random) -> str:
    tree = yaml.safe_load(text)
    for parent in [tree, *(p[k] for p, k in _places(tree) if isinstance(p[k], dict))]:
        pairs = list(parent.items())
        parent.clear()
        parent.update(rng.sample(pairs, len(pairs)))
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _other_key(text: str, rng: random.Random) -> str:
    tree = yaml.safe_load(text)
    parent, key = rng.choice([place for place in _places(tree) if isinstance(place[0], dict)])
    value = parent.pop(key)
    match rng.randrange(4):
        case 0:  # lost
            pass
        case 1:  # misspelt
            parent[str(key)[:-1] + "x"] = value
        case 2:  # of another type
            parent[rng.choice((1, 0.5, True, None))] = value
        case 3:  # foreign
            parent |= {key: value, rng.choice(("extra", "a.b", "", "__class__")): value}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _other_lines(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines[a], lines[b] = lines[b], lines[a]
        case 1:
            lines.insert(a, lines[b])
        case 2:
            lines[a] = " " * rng.randint(1, 5) + lines[a]
        case 3:
            del lines[a:]
    return "".join(lines) or "#"


def _other_characters(text: str, rng: random.Random) -> str:
    start = rng.randrange(len(text) + 1)
    end = start + rng.choice((0, 0, 1, 3))
    return text[:start] + rng.choice(_CHARACTERS) * rng.choice((1, 1, 2, 300)) + text[end:]


def _places(tree: Any) -> Any:
    """(parent, key) of every value of a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


def _other_encoding(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    match rng.randrange(4):
        case 0:
            return text.encode("utf-16")
        case 1:
            return b"\xef\xbb\xbf" + data
        case 2:
            return data.replace(b"\n", b"\r\n")
        case _:
            return _overwrite(data, rng)


def _damage_none(data: bytes, rng: random.Random) -> bytes:
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 4, 64)))[: len(data) - at] + data[at + 64 :]


def _zeros(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.choice((8, 512, 4096))
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 8, len(data) // 2, len(data) - 1, rng.randrange(len(data))))]


def _lose(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 4, 1000)) :]


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\0", b"\n", rng.randbytes(50), data))


def _exchange(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[a:b] + data[:a] + data[b:]


def _replace(data: bytes, rng: random.Random) -> bytes:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    page = b"<!DOCTYPE html><title>404</title>"
    return rng.choice((pointer, page, rng.randbytes(len(data)), b"{}", b"[]", b"null", b"\x80\x04."))
