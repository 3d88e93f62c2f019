"""Configuration: YAML, overrides and Python values into frozen models, and the table of their options."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from his2lip.errors import ConfigError, did_you_mean, redact

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a run, a sweep or a benchmark: it names a folder
MAX_VALUES = 1_000_000  # values in one YAML file, aliases counted each time that they are used


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, an unknown key is an error, a docstring describes each field.

    The docstring under a field is its meaning in `describe_options` and in `json_schema`.
    """

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


C = TypeVar("C", bound=Config)


class OptionError(ValueError):
    """An option or argument that cannot be used: `key` is its name, dotted in a config."""

    def __init__(self, what: str, *, key: str) -> None:
        super().__init__(what)
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps `key` when the error crosses a process boundary (Ray pickles exceptions)."""
        return partial(type(self), key=self.key), self.args


def load(
    kind: type[C], source: str | Path | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> C:
    """Reads the YAML file `source` (None: all defaults), applies `overrides`, and validates the result.

    `overrides` are strings `a.b=value`, as on the command line, or a mapping of dotted keys to Python values.
    Raises ConfigError, whose `key` is the first key at fault.
    """
    tree = read_yaml(source) if source is not None else {}
    values = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    return validate(kind, set_values(tree, values), where=source)


def validate(kind: type[C], tree: Mapping[str, Any], *, where: str | Path | None = None) -> C:
    """`tree` as a `kind`. Raises ConfigError, whose `key` is the first key at fault."""
    try:
        return kind.model_validate(tree)
    except pydantic.ValidationError as error:
        raise _to_config_error(kind, error, where) from None


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of `a.b=value` strings by their dotted keys; of two for one key the later one counts.

    Values are YAML: `optim.lr=1e-4`, `data.split=train`, `loss.tau=null`, `models=[a,b]`.
    Raises ConfigError for a string that is not `key=value`, or whose value is not YAML.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        key = key.strip()
        if not sign or not key:
            raise ConfigError(
                "an override is written key=value", where=override, key=key, fix="such as optim.lr=1e-4"
            )
        try:
            value = _parse_yaml(text, loader=_OverrideLoader) if text else None
        except _YamlError as error:
            raise ConfigError(f"the value is not valid YAML: {error}", where=override, key=key) from None
        values.pop(key, None)  # the later one also comes later
        values[key] = value
    return values


def set_values(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with each dotted key of `values` set in it, in their order.

    Raises ConfigError where a key leads through a value that is not a mapping.
    """
    changed = {key: set_values(v, {}) if isinstance(v, Mapping) else v for key, v in tree.items()}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = changed
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            if not isinstance(node[parent], dict):
                what = f"'{key}' cannot be set: '{parent}' is {_short(node[parent])} and has no keys"
                raise ConfigError(what, key=key, fix=f"write a mapping for {parent}")
            node = node[parent]
        node[last] = value
    return changed


def read_yaml(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises ConfigError for a file that cannot be read, that is not YAML, or that has a key twice.
    """
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        fix = did_you_mean(str(path), siblings) if siblings else "check the path"
        raise ConfigError("this configuration file does not exist", where=path, fix=fix) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        fix = "name a YAML file in UTF-8 that you can read"
        raise ConfigError(f"this configuration file cannot be read: {reason}", where=path, fix=fix) from None
    try:
        tree = _parse_yaml(text)
    except _YamlError as error:
        where = f"{path}:{error.line}" if error.line else path
        what = f"this is not valid YAML: {error}"
        raise ConfigError(what, where=where, key=error.key, fix="correct that line") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"this must be a mapping of keys, not a {type(tree).__name__}", where=path)
    return tree


def resolved(config: pydantic.BaseModel) -> dict[str, Any]:
    """The whole configuration as plain JSON values; feeding it back gives the same configuration."""
    return config.model_dump(mode="json")


def recorded(config: pydantic.BaseModel) -> dict[str, Any]:
    """`resolved` without the secrets of addresses, for files and for MLflow."""
    tree: dict[str, Any] = redacted(resolved(config))
    return tree


def redacted(value: Any) -> Any:
    """Plain JSON values without the secrets of the addresses in them."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(key): redacted(inner) for key, inner in value.items()}
    return [redacted(inner) for inner in value] if isinstance(value, list) else value


def dump_yaml(config: pydantic.BaseModel | Mapping[str, Any]) -> str:
    """The whole configuration, or its plain JSON values, as YAML that `load` reads back to an equal one."""
    # Non-ASCII text is escaped: PyYAML writes some line separators as they are and folds them when reading.
    tree = resolved(config) if isinstance(config, pydantic.BaseModel) else dict(config)
    return yaml.safe_dump(tree, sort_keys=False)


def digest(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON: the identity of configurations, label sets and plans."""
    if isinstance(value, pydantic.BaseModel):
        value = resolved(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


SEAL = "sha256"  # key of a stored tree's digest


def sealed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON tree with its digest under `sha256`, for a file that `unsealed` reads."""
    plain: dict[str, Any] = json.loads(json.dumps(tree))
    return plain | {SEAL: _seal(plain)}


def unsealed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that was sealed. Raises ValueError where it has changed since; trees without a digest pass."""
    plain = {key: value for key, value in tree.items() if key != SEAL}
    if SEAL in tree and tree[SEAL] != _seal(plain):
        raise ValueError("its content is not what was written")
    return plain


def _seal(plain: Mapping[str, Any]) -> str:
    """As `digest`, and for NaN and names that are not UTF-8 too."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Option:
    """One row of the table of options; `type` is empty for a section, whose options follow."""

    key: str
    type: str
    default: str
    meaning: str


def describe_options(kind: type[Config]) -> list[Option]:
    """Every option of a configuration and of its sections, in the order in which they are declared."""
    schema = json_schema(kind)
    return list(_options(schema, schema.get("$defs", {}), prefix="", defaults={}))


def json_schema(kind: type[Config]) -> dict[str, Any]:
    """The JSON Schema of a configuration file, by which an editor completes and checks keys."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}


# --- the table of options, derived from the JSON Schema ----------------------------------------------------


def _options(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], *, prefix: str, defaults: Mapping[str, Any]
) -> Iterator[Option]:
    for name, field in schema["properties"].items():
        key = f"{prefix}{name}"
        default = defaults.get(name, field.get("default", ...))
        section = _section(field, definitions)
        meaning = " ".join(field.get("description", section.get("description", "")).split())
        if section and section == _target(field, definitions):
            yield Option(key, "", "", meaning)
        else:
            shown = "required" if default is ... else json.dumps(default, ensure_ascii=False)
            yield Option(key, _type_name(field, definitions), shown.strip('"'), meaning)
        if section:
            below = default if isinstance(default, Mapping) else {}
            inner = f"{key}[]." if field.get("type") == "array" else f"{key}."
            yield from _options(section, definitions, prefix=inner, defaults=below)


def _target(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a field's `$ref` refers to; without one, the field itself."""
    return definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _section(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """The only section that a field can be or list; empty where there is none, or a choice among several."""
    kinds = [field, *field.get("anyOf", ()), field.get("items", {})]
    sections = [s for s in (_target(kind, definitions) for kind in kinds) if "properties" in s]
    return sections[0] if len(sections) == 1 else {}


def _type_name(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A type of JSON Schema in the words of the table."""
    target = _target(field, definitions)
    if choices := field.get("anyOf", field.get("oneOf")):
        return " | ".join(dict.fromkeys(_type_name(choice, definitions) for choice in choices))
    if "enum" in target or "const" in target:
        return " | ".join(json.dumps(v).strip('"') for v in target.get("enum", [target.get("const")]))
    match target.get("type"):
        case "array":
            inner = target.get("items") or {"anyOf": target.get("prefixItems", [{}])}
            return f"list of {_type_name(inner, definitions)}"
        case "object" if "properties" in target:
            fields = target["properties"]
            tag = fields.get("kind", {}).get("const")
            names = [f"kind: {tag}" if tag and name == "kind" else name for name in fields]
            return "{" + ", ".join(names) + "}"
        case "object":
            values = target.get("additionalProperties")
            return f"mapping to {_type_name(values, definitions)}" if isinstance(values, dict) else "mapping"
        case other:
            words = {"integer": "whole number", "boolean": "true | false", "string": "text", None: "any"}
            return words.get(other, str(other)) + _bounds(target)


def _bounds(field: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return f" {', '.join(bounds)}" if bounds else ""


# --- YAML --------------------------------------------------------------------------------------------------


class _YamlError(Exception):
    """Text that is not YAML as configurations are written: why, in which line, and the key at fault."""

    def __init__(self, what: str, *, line: int | None = None, key: str | None = None) -> None:
        super().__init__(what)
        self.line, self.key = line, key


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that a mapping has twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, Any]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            truth = key.tag == "tag:yaml.org,2002:bool"  # of which `no` and `off` are two spellings
            identity = key.tag, self.bool_values[key.value.lower()] if truth else key.value
            if identity in seen:
                line = key.start_mark.line + 1
                raise _YamlError(f"the key '{key.value}' is there twice", line=line, key=key.value)
            seen.add(identity)
        return node


class _OverrideLoader(_Loader):
    """Reads 1e-4 as a number, which YAML 1.1 reads as text."""


_OverrideLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, *, loader: type[_Loader] = _Loader) -> Any:
    """The value of a YAML text. Raises _YamlError."""
    try:
        tree = yaml.load(text, Loader=loader)  # it constructs no tags but yaml.SafeLoader's
    except _YamlError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "syntax error"
        raise _YamlError(problem, line=mark.line + 1 if mark else None) from None
    except RecursionError:
        raise _YamlError("it is nested too deep") from None
    except Exception as error:  # what int(), float(), datetime() and the like raise inside of PyYAML
        raise _YamlError(f"a value cannot be read: {error}") from None
    if _count_values(tree, {}) > MAX_VALUES:
        raise _YamlError(f"it has more than {MAX_VALUES:,} values, or an alias that contains itself")
    return tree


def _count_values(value: Any, known: dict[int, float]) -> float:
    """How many values a tree has, counting an alias each time; infinite where one contains itself.

    Raises _YamlError for a whole number of more than 64 bits, which JSON, SQL and torch cannot keep.
    """
    if isinstance(value, int) and value.bit_length() > 64:
        raise _YamlError("a whole number has more than 64 bits")
    if not isinstance(value, dict | list | set):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # until it is counted
        parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
        known[id(value)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(value)]


# --- from pydantic's errors to one sentence ----------------------------------------------------------------


def _to_config_error(
    kind: type[Config], error: pydantic.ValidationError, where: str | Path | None
) -> ConfigError:
    """The first problem of a validation; a key that is not known comes before one that is missing."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "missing":  # which may be what an unknown key is a misspelling of
        unknown = (e for e in errors if e["type"] == "extra_forbidden" and len(e["loc"]) == 1)
        first = next(unknown, first)
    path, models = _locate(kind, first)
    key = ".".join(path)
    original = first.get("ctx", {}).get("error")
    if isinstance(original, OptionError):
        key = f"{key}.{original.key}" if key else original.key
    place = (
        ", ".join(part for part in (str(where or ""), f"key {key}" if key else "") if part) or kind.__name__
    )
    if first["type"] == "extra_forbidden":
        known = sorted({name for model in models for name in model.model_fields})
        fix = did_you_mean(path[-1], known) if known else None
        return ConfigError(f"unknown key '{path[-1]}'", where=place, key=key, fix=fix)
    if first["type"] == "missing":
        what, place = f"the key '{key}' is missing", str(where or kind.__name__)
        return ConfigError(what, where=place, key=key, fix=f"add {key}: …")
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first.get("ctx", {}).get("pattern") == NAME:
        message = "a name has only letters, digits, '.', '_' and '-', and begins with a letter or digit"
    if original is None:
        message += f", got {_short(first['input'])}"
    return ConfigError(message, where=place, key=key or None, fix=_quote_hint(first, key))


def _quote_hint(problem: Any, key: str) -> str | None:
    """YAML reads `yes`, `0` and `1e3` as a truth value or a number, where text was meant."""
    not_text = isinstance(problem["input"], bool | int | float | date)
    if problem["type"] not in ("string_type", "invalid_key") or not not_text:
        return None
    return f'quote it to make it text (in YAML "…"; on the command line \'{key or "key"}="…"\')'


def _locate(kind: Any, problem: Any) -> tuple[list[str], list[type[pydantic.BaseModel]]]:
    """The keys of the location of pydantic's `problem`, and the models that the last could be a field of.

    Names of union members, which pydantic puts between the keys, are left out.
    """
    *location, last = problem["loc"] or ("",)
    path: list[str] = []
    models, annotations = _models(kind), [kind]
    for part in location:
        inner = _contents(annotations, part)
        if not inner and len(models) > 1:  # the name of one of several models
            models = [m for m in models if part in (m.__name__, _kind(m))] or models
            continue
        inner = inner or [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if inner:
            path.append(str(part))
            annotations, models = inner, [m for annotation in inner for m in _models(annotation)]
    known = [last in m.model_fields for m in models] == [True] or _contents(annotations, last)
    if last == "[key]":  # a mapping's key that is not text
        path[-1] = str(problem["input"])
    elif known or problem["type"] == "extra_forbidden":
        path.append(str(last))
    return path, models


def _kind(model: type[pydantic.BaseModel]) -> str | None:
    """The value of `kind` that tells a model from the others of a union."""
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field and typing.get_args(field.annotation) else None


def _contents(annotations: Sequence[Any], part: str | int) -> list[Any]:
    """The types of what is at `part` (a key, or a place in a list) in a value of one of these types."""
    kinds = [*annotations, *(inner for a in annotations for inner in typing.get_args(a))]
    collections = (list, tuple, dict) if isinstance(part, int) else (dict,)
    return [typing.get_args(kind)[-1] for kind in kinds if typing.get_origin(kind) in collections]


def _models(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [m for inner in typing.get_args(annotation) for m in _models(inner)]


def _short(value: Any) -> str:
    """The first 80 characters of a value as Python writes it."""
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = writer.maxlong = 80
    try:
        return writer.repr(value)[:80]
    except ValueError:  # a whole number of more digits than Python writes
        return "a very large number"
