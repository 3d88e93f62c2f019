"""Splits: finds a split of a prepared dataset by its name or role, and checks that it may be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from his2lip.data.cards import Role
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import DatasetError

# Roles of splits that may be read while a model is trained or chosen.
LEARNING_ROLES: tuple[Role, ...] = ("train", "select")


def resolve_split(
    shards: ShardSet, name: str, *, roles: Sequence[Role], key: str, or_else: str | None = None
) -> str:
    """The name of a split: the one called `name`, else the dataset's only split whose role is `name`.

    roles    roles that the caller may read
    key      the option or config key that `name` came from
    or_else  another value that the key may take, for the message

    Raises DatasetError where there is no such split, where several splits have that role, or where the role
    of the split is not in `roles`.
    """
    found = _find(shards, name)
    role = None if found is None else shards.info.roles.get(found)
    if found is not None and role in roles:
        return found
    if found is not None:
        what = f"the split '{found}' has the role '{role}', and only {' or '.join(roles)} may be read here"
    elif splits_with_role(shards.info.roles, name):
        what = f"several splits have the role '{name}'"
    else:
        what = f"there is no split '{name}', and no split with that role"
    raise DatasetError(what, where=shards.uri, key=key, fix=_fix(shards, roles, key, or_else))


def splits_with_role(roles: Mapping[str, str], role: str, *, besides: str | None = None) -> list[str]:
    """Names of the splits whose role is `role`, in `roles` (split -> role), without `besides`."""
    return [split for split, its_role in roles.items() if its_role == role and split != besides]


def _find(shards: ShardSet, name: str) -> str | None:
    if name in shards.splits:
        return name
    of_role = splits_with_role(shards.info.roles, name)
    return of_role[0] if len(of_role) == 1 else None


def _fix(shards: ShardSet, roles: Sequence[Role], key: str, or_else: str | None) -> str:
    allowed = [split for split in shards.splits if shards.info.roles.get(split) in roles]
    options = [*allowed, *([or_else] if or_else else [])]
    if not options:
        return f"prepare the dataset with a split whose role is {' or '.join(roles)}"
    return f"set {key} to {'one of ' if len(options) > 1 else ''}{', '.join(options)}"
