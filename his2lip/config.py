"""Configuration: YAML and dotted overrides into frozen models that refuse what they do not know."""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from his2lip.errors import ConfigError, did_you_mean


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


C = TypeVar("C", bound=Config)


def load(kind: type[C], source: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Reads `source` (YAML; None means all defaults), applies `a.b=value` overrides, and validates.

    Values of overrides are YAML: `optim.lr=1e-4`, `data.split=train`, `loss.tau=null`, `models=[a,b]`.
    Raises ConfigError with one sentence that names the key, the file and the nearest known key.
    """
    tree = read_yaml(source) if source is not None else {}
    for override in overrides:
        _apply(tree, override)
    return validate(kind, tree, where=source)


def validate(kind: type[C], tree: Mapping[str, Any], *, where: str | Path | None = None) -> C:
    """`tree` as a `kind`, or a ConfigError that names the first wrong key."""
    try:
        return kind.model_validate(tree)
    except pydantic.ValidationError as error:
        raise _explain(kind, error, where) from None


def read_yaml(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        fix = did_you_mean(str(path), siblings) if siblings else "check the path"
        raise ConfigError("this configuration file does not exist", where=path, fix=fix) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"this configuration file cannot be read: {error}", where=path) from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "syntax error"
        raise ConfigError(f"this is not valid YAML: {problem}", where=line, fix="fix that line") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"a mapping is wanted here, not a {type(tree).__name__}", where=path)
    return tree


def resolved(config: pydantic.BaseModel) -> dict[str, Any]:
    """The whole configuration as plain JSON values; feeding it back gives the same configuration."""
    return config.model_dump(mode="json")


def dump_yaml(config: pydantic.BaseModel) -> str:
    """The whole configuration as YAML that `load` reads back to an equal one."""
    # Escaped, since PyYAML writes some line separators bare and folds them when it reads them back.
    return yaml.safe_dump(resolved(config), sort_keys=False)


def digest(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON: the identity of configurations, label sets and plans."""
    if isinstance(value, pydantic.BaseModel):
        value = resolved(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _apply(tree: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in a nested mapping, making the mappings on the way."""
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError("an override is written key=value", where=override, fix="such as optim.lr=1e-4")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        raise ConfigError("this override's value is not valid YAML", where=override) from None
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.strip().split(".")
    for parent in parents:
        child = tree.get(parent)
        if child is None:
            child = tree[parent] = {}
        if not isinstance(child, dict):
            said = f"'{parent}' is {child!r:.60} and has no keys to override"
            raise ConfigError(said, where=override, fix=f"write a mapping for {parent} in the file")
        tree = child
    tree[last] = value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as a string; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _explain(kind: type[Config], error: pydantic.ValidationError, where: str | Path | None) -> ConfigError:
    """The first problem of a validation as one sentence."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    place = f"{where}, key {key}" if where is not None else f"key {key}"
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, path[:-1])
        fix = did_you_mean(path[-1], known) if known else None
        return ConfigError(f"unknown key '{path[-1]}'", where=place, fix=fix)
    if first["type"] == "missing":
        return ConfigError(f"the key '{key}' is missing", where=where or kind.__name__, fix=f"add {key}: …")
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return ConfigError(f"{message}, got {first['input']!r:.80}", where=place)


def _fields_at(kind: Any, path: Sequence[str]) -> list[str]:
    """Names that are known where `path` leads, walking through models nested in unions, lists and maps."""
    kinds = _models(kind)
    for part in path:
        step = [m.model_fields[part].annotation for m in kinds if part in m.model_fields]
        # List positions, map keys and union tags stand in a location without being fields.
        kinds = [m for annotation in step for m in _models(annotation)] or kinds
    return sorted({name for m in kinds for name in m.model_fields})


def _models(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [m for inner in typing.get_args(annotation) for m in _models(inner)]
