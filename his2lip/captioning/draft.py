"""Drafts a caption project: the keys of prepared datasets, their representative patches, prefilled seeds."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from his2lip.captioning.context import CONTEXT_UM, Surroundings, draw
from his2lip.captioning.fields import prefilled, sentence
from his2lip.captioning.records import Key, Picture, key_id
from his2lip.captioning.store import PICTURES, Project, refuse_existing
from his2lip.config import digest
from his2lip.data.captions import captioned
from his2lip.data.images import STAINED_FROM, encode_png, stained_share
from his2lip.data.shards import (
    LEARNING_ROLES,
    ShardSet,
    Staining,
    resolve_split,
    splits_with_role,
    statement,
)
from his2lip.errors import DatasetError
from his2lip.evaluation import EmbeddingCache, ModelEncoder, decoder_version, unit_rows
from his2lip.files import filesystem, write_file

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

PER_KEY = 4  # representative patches of a key
_CANDIDATES = 500  # patches of a key that are embedded; more would hardly change the medoids
_UNKNOWN = -1.0  # in place of a share that cannot be measured
_MEASURED = ["tissue", "biomarker", "label", "score", "stain"]
_PLACED = ["patch_id", "case_id", "slide_id", "region_id", "x", "y", "width", "height", "mpp"]
_DAB = ("DAB", None)  # stains whose area is measured; most datasets that state none are DAB

_Subject = tuple[str | None, str | None, Staining | None]
ProgressCallback = Callable[[str, int, int], None]  # what is done, images done, images to do


@dataclass(frozen=True, kw_only=True)
class Source:
    """A prepared dataset of a draft.

    splits  those whose patches get captions; None: all of role train
    root    folder of the published files, where slides for the context lie; None: shards only
    """

    shards: ShardSet
    splits: Sequence[str] | None = None
    root: Path | None = None

    @property
    def chosen(self) -> list[str]:
        """The splits by name. Raises DatasetError where there is none that captions may be written for."""
        if self.splits:
            return [resolve_split(self.shards, s, roles=LEARNING_ROLES, key="--split") for s in self.splits]
        found = splits_with_role(self.shards.info.roles, "train")
        return found or [resolve_split(self.shards, "train", roles=LEARNING_ROLES, key="--split")]


@dataclass
class Drafted:
    """The outcome: the project, and what no key covers.

    left_out  reason -> patches
    """

    project: Project
    patches: int
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def covered(self) -> int:
        return sum(key.patches for key in self.project.keys)


@dataclass(frozen=True)
class _Member:
    """A patch of a key: its dataset, split, row and case."""

    source: int
    split: str
    row: int
    place: Mapping[str, Any]

    @property
    def case(self) -> str:
        """The case, else the slide, else the file. Equal names in two datasets are two cases."""
        file = self.place["patch_id"].partition("#")[0]
        return f"{self.source} {self.place['case_id'] or self.place['slide_id'] or file}"


class ShareEncoder:
    """The stained share of an image as an `ImageEncoder`, so that the cache measures each image once."""

    width = 1

    @cached_property
    def key(self) -> str:
        made_of = {"encoder": "stained share", "version": 1, "from": STAINED_FROM}
        return digest(made_of | {"decoder": decoder_version()})

    def crop_key(self, mpp: float | None) -> str:
        return ""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        share = stained_share(pixels)
        return np.array([[_UNKNOWN if share is None else share]], dtype=np.float32)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return crops


def draft_project(
    folder: Path,
    sources: Sequence[Source],
    model: DualEncoder,
    *,
    cache: str,
    bands: bool = True,
    per_key: int = PER_KEY,
    seed: int = 0,
    progress: ProgressCallback = lambda what, done, total: None,
) -> Drafted:
    """Writes a new caption project into `folder`.

    model    embeds the patches; its features are cached, so that no image is embedded twice
    bands    one key for each staining band of a tissue type and biomarker, else one for all bands
    per_key  representative patches of a key, at least 4 where it has 4 or more

    Patches without tissue type and biomarker, and those whose label and pixels disagree about staining, have
    no key. Raises DatasetError where a project is there already, or where no patch has a key.
    """
    refuse_existing(folder)  # before the work
    members: dict[_Subject, list[_Member]] = defaultdict(list)
    left_out: dict[str, int] = defaultdict(int)
    total = 0
    for number, source in enumerate(sources):
        for split in source.chosen:
            total += _sort(number, source.shards, split, members, left_out, cache, bands, progress)
    if not members:
        fix = "prepare patches with tissue type and biomarker, or name other splits with --split"
        raise DatasetError("no patch has a tissue type or a biomarker", key="tissue", fix=fix)
    candidates = {key: _some(own) for key, own in members.items()}
    features = _features(sources, candidates.values(), model, cache, progress)
    ordered = sorted(members, key=lambda key: (-len(members[key]), str(key)))
    chosen = {}
    for key in ordered:
        own = candidates[key]
        places = medoids(
            np.stack([features[member.source, member.split, member.row] for member in own]),
            [member.case for member in own],
            count=per_key,
            seed=seed,
        )
        chosen[key] = [own[i] for i in places]
    pictures = _pictures(folder, sources, chosen, progress)
    keys = [_key(key, len(members[key]), pictures[key]) for key in ordered]
    project = Project.create(
        folder,
        keys,
        datasets={source.shards.uri: source.shards.info.digest for source in sources},
        seed=seed,
        options={
            "model": model.name,
            "bands": bands,
            "per_key": per_key,
            "splits": {source.shards.uri: source.chosen for source in sources},
        },
    )
    return Drafted(project, total, dict(left_out))


def medoids(features: np.ndarray, cases: Sequence[str], *, count: int, seed: int = 0) -> list[int]:
    """The places of `count` of N patches that represent them, of as many cases as possible.

    features  float32 (N, D), raw; they are compared by direction
    cases     the case of each patch

    k-means parts the patches into `count` clusters (scikit-learn). Of each, the largest first, the patch
    nearest to its mean is taken, of a case that no other medoid has where the cluster has one. Clusters that
    have none give way: the most distant patch of a new case is taken, where there is one.
    """
    from sklearn.cluster import KMeans

    unit = unit_rows(features)
    count = min(count, len(unit))
    distinct = len(np.unique(unit, axis=0))
    fitted = KMeans(min(count, distinct), n_init=1, random_state=seed).fit(unit)
    distance = np.linalg.norm(unit - fitted.cluster_centers_[fitted.labels_], axis=1)
    sizes = np.bincount(fitted.labels_)
    chosen: list[int] = []
    used: set[str] = set()
    for cluster in np.argsort(-sizes, kind="stable"):
        inside = np.flatnonzero(fitted.labels_ == cluster)
        ordered = inside[np.argsort(distance[inside], kind="stable")]
        new = [int(i) for i in ordered if cases[i] not in used] or _others(unit, chosen, cases, used)
        chosen.append(new[0] if new else int(ordered[0]))
        used.add(cases[chosen[-1]])
    while len(chosen) < count:  # equal patches: fewer clusters than asked
        new = _others(unit, chosen, cases, used) or [i for i in range(len(unit)) if i not in chosen]
        chosen.append(new[0])
        used.add(cases[new[0]])
    return chosen


def _others(unit: np.ndarray, chosen: Sequence[int], cases: Sequence[str], used: set[str]) -> list[int]:
    """Patches of cases that are not used yet, those least like the chosen ones first."""
    free = [i for i in range(len(unit)) if cases[i] not in used]
    if not free or not chosen:
        return free
    likeness = (unit[free] @ unit[list(chosen)].T).max(axis=1)
    return [free[i] for i in np.argsort(likeness, kind="stable")]


def _sort(
    number: int,
    shards: ShardSet,
    split: str,
    members: dict[_Subject, list[_Member]],
    left_out: dict[str, int],
    cache: str,
    bands: bool,
    progress: ProgressCallback,
) -> int:
    """Adds the patches of a split to their keys; how many patches it has."""
    measuring = EmbeddingCache(cache, progress=lambda done, total: progress("stained areas", done, total))
    table = shards.table(split, [*_PLACED, *_MEASURED])
    shares: list[float | None] = [None] * len(table)
    if bands:
        rows = np.flatnonzero([stain in _DAB for stain in table["stain"].to_pylist()])
        if len(rows):
            measured = measuring.embed(ShareEncoder(), shards, split, rows=rows).features[:, 0]
            for measured_row, share in zip(rows, measured, strict=True):
                shares[measured_row] = None if share == _UNKNOWN else float(share)
    for row, (patch, share) in enumerate(zip(table.to_pylist(), shares, strict=True)):
        tissue, biomarker = patch["tissue"], patch["biomarker"]
        if tissue is None and biomarker is None:
            left_out["neither tissue type nor biomarker"] += 1
            continue
        band: Staining | None = None
        if bands:
            stated = statement(
                shards.info.card,
                tissue=tissue,
                biomarker=biomarker,
                label=patch["label"],
                score=patch["score"],
            )
            band, _ = captioned(stated, share)
            if band is None and share is not None:
                left_out["label and pixels disagree about staining"] += 1
                continue
            if band is None and tissue == "Background":
                band = "negative"  # too little tissue to measure: there is none to be stained
        place = {name: patch[name] for name in _PLACED}
        members[tissue, biomarker, band].append(_Member(number, split, row, place))
    return len(table)


def _some(members: Sequence[_Member]) -> list[_Member]:
    """At most `_CANDIDATES` of a key's patches, by a hash of their ids, so that the choice does not vary."""
    if len(members) <= _CANDIDATES:
        return list(members)
    return sorted(members, key=lambda m: hashlib.sha256(m.place["patch_id"].encode()).digest())[:_CANDIDATES]


def _features(
    sources: Sequence[Source],
    groups: Iterable[Sequence[_Member]],
    model: DualEncoder,
    cache: str,
    progress: ProgressCallback,
) -> dict[tuple[int, str, int], np.ndarray]:
    """The mean raw feature, float32 (D,), of each candidate, by dataset, split and row."""
    rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for group in groups:
        for member in group:
            rows[member.source, member.split].append(member.row)
    embedding = EmbeddingCache(cache, progress=lambda done, total: progress("embeddings", done, total))
    encoder = ModelEncoder(model)
    found = {}
    for (source, split), own in rows.items():
        wanted = np.array(sorted(own))
        embedded = embedding.embed(encoder, sources[source].shards, split, rows=wanted)
        for place, row in enumerate(wanted):
            found[source, split, int(row)] = embedded.features[embedded.row == place].mean(axis=0)
    return found


def _pictures(
    folder: Path,
    sources: Sequence[Source],
    chosen: Mapping[_Subject, Sequence[_Member]],
    progress: ProgressCallback,
) -> dict[_Subject, list[Picture]]:
    """Draws and writes the pictures of the chosen patches; each row group is read a few times at most."""
    named: dict[tuple[int, str], dict[int, tuple[_Subject, int, _Member]]] = defaultdict(dict)
    for key, members in chosen.items():
        for number, member in enumerate(members):
            named[member.source, member.split][member.row] = (key, number, member)
    found: dict[_Subject, list[Picture | None]] = {key: [None] * len(own) for key, own in chosen.items()}
    done, total = 0, sum(map(len, chosen.values()))
    for (source, split), rows in named.items():
        surroundings = Surroundings(sources[source].shards, sources[source].root)
        ordered = {row: rows[row][2].place for row in sorted(rows)}
        views = surroundings.views(split, ordered, context_um=CONTEXT_UM)
        for row, view in zip(ordered, views, strict=True):
            key, number, member = rows[row]
            pixels, bar = draw(view)
            name = f"{PICTURES}/{key_id(*key)}-{number + 1}.png"
            write_file(*filesystem(folder / name), encode_png(pixels))
            found[key][number] = Picture(
                patch=member.place["patch_id"],
                file=name,
                case=member.place["case_id"],
                context_um=view.context_um,
                scale_bar_um=bar,
            )
            done += 1
            progress("pictures", done, total)
    return {key: [picture for picture in own if picture is not None] for key, own in found.items()}


def _key(subject: _Subject, patches: int, pictures: Sequence[Picture]) -> Key:
    tissue, biomarker, staining = subject
    fields = prefilled(tissue, biomarker, staining)
    return Key(
        id=key_id(*subject),
        tissue=tissue,
        biomarker=biomarker,
        staining=staining,
        patches=patches,
        pictures=tuple(pictures),
        fields=fields,
        text=sentence(tissue, biomarker, fields),
    )
