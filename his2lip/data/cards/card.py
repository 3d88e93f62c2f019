"""Dataset cards: what a dataset is, whose it is, how its files are read, split and scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from his2lip import config, resources, taxonomy
from his2lip.config import Config
from his2lip.errors import ConfigError, DatasetError, did_you_mean

CARDS = "benchmarks/datasets"
PROMPTS = "benchmarks/prompts"

# Microns per pixel that an image of a microscope can have; published slides lie between 0.1 and 10.
MIN_MPP, MAX_MPP = 0.05, 20.0
Mpp = Annotated[float, pydantic.Field(ge=MIN_MPP, le=MAX_MPP)]

Role = Literal["train", "select", "report"]
Grouping = Literal["case", "slide", "region", "file"]


def _plain(name: str) -> str:
    if re.fullmatch(r"\w[\w.-]*", name) is None:  # a folder of shards has it: no path leads out of --out
        raise ValueError("a split's name is made of letters, digits, '.', '-' and '_'")
    return name


SplitName = Annotated[str, pydantic.AfterValidator(_plain)]


class Source(Config):
    """Where the authors publish the dataset."""

    record: str | None = None  # an identifier such as "Zenodo 10065510"
    url: str | None = None
    access: Literal["open", "registration", "request", "local", "unknown"] = "unknown"


class Licence(Config):
    """Terms of use as fields, so that programs can check them; None where the terms are unknown."""

    name: str = "unknown"
    spdx: str | None = None
    attribution: bool | None = None
    commercial_use: bool | None = None
    derivatives: bool | None = None  # may anything be made of it, such as a trained model?
    share_alike: bool | None = None
    note: str | None = None


class Published(Config):
    """What the authors, or the paper, say that it holds; a difference is a warning, never an error."""

    unit: str = "patch"
    images: int | None = None  # as the paper's Table 1 counts
    size_px: int | None = None  # a side
    counts: dict[str, dict[str, int]] = {}  # split -> label (or "all") -> number
    note: str | None = None


class Split(Config):
    """One split: who may read it, who made it, and what of it recurs elsewhere."""

    role: Role
    origin: Literal["official", "ours"] = "official"
    groups: Grouping | None = None  # what is kept whole between splits
    recurs: str | None = None  # what may still recur across splits


class Carve(Config):
    """Moves whole groups of one split into another, each by a hash of its name that is keyed by the seed."""

    source: str
    into: str
    fraction: float = pydantic.Field(gt=0, lt=1)  # of the groups, on average
    by: Grouping
    seed: int = 0


class Protocol(Config):
    """How a split is scored: which rows, which classes, which prompts, and how images and logits are treated.

    Rows of `split` that match every list of `where` are scored. A row's class is the one whose list holds the
    row's value in the column `label`; rows of `apart` are predicted and reported but not scored; rows of
    neither are left out. `unit: image` or `slide` pools rows that share `pool_by`. `view` is how an image
    larger than the model's input is shown to it: squashed whole, its centre cropped, or tiles at `tile_mpp`.
    """

    split: str
    label: Literal["tissue", "biomarker", "label", "score", "pair"]  # pair: "{tissue} {biomarker}"
    classes: dict[str, list[str]]
    prompts: str
    where: dict[str, list[str]] = {}
    apart: dict[str, list[str]] = {}
    unit: Literal["patch", "image", "slide"] = "patch"
    pool_by: str | None = None
    view: Literal["squash", "centre", "tiles"] = "squash"
    tile_mpp: Mpp | None = None  # microns a pixel of the tiles; None: the training data's
    max_tiles: pydantic.PositiveInt | None = None
    pooling: Literal["mean_embedding", "mean_logit", "max"] = "mean_embedding"
    scoring: Literal["cosine", "dot"] = "cosine"
    preprocessing: Literal["native", "released"] = "native"
    ordinal: bool = False  # the classes are ordered: quadratic kappa is reported too
    breakdown: str | None = None  # a column whose values are reported one by one
    basis: Literal["published", "inferred", "ours"]
    note: str | None = None

    @pydantic.model_validator(mode="after")
    def _classes_do_not_overlap(self) -> Protocol:
        values = [v for listed in (*self.classes.values(), *self.apart.values()) for v in listed]
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ValueError(f"the label '{twice[0]}' stands in two classes")
        if len(self.classes) < 2:
            raise ValueError("a protocol needs two classes or more")
        return self


class Card(Config):
    """One dataset, as its YAML declares it. Only `name`, `reader` and `splits` must be given."""

    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    reader: str
    splits: dict[SplitName, Split]
    title: str = ""
    options: dict[str, Any] = {}  # the reader's own
    source: Source = Source()
    licence: Licence = Licence()
    citation: str = ""
    organ: list[str] = []
    scanner: str | None = None
    magnification: pydantic.PositiveFloat | None = None
    mpp: Mpp | None = None  # microns a pixel; None where unknown
    mpp_basis: Literal["published", "inferred", "unknown"] = "unknown"
    stain: str | None = None  # of all images, unless the reader knows better
    published: Published = Published()
    classes: dict[str, list[str]] = {}  # the dataset's own classes and the spellings of each
    carve: list[Carve] = []
    protocols: dict[str, Protocol] = {}
    in_domain: bool = False  # the training distribution of the paper's models: left out of zero-shot means
    pretraining: dict[str, Literal["no", "yes", "possible", "unknown"]] = {}  # may a backbone have seen it?
    differences: list[str] = []  # from what the paper's Table 1 says
    unknown: list[str] = []  # what nobody could find out

    @pydantic.model_validator(mode="after")
    def _splits_are_declared(self) -> Card:
        named = [(f"protocol {n}", p.split) for n, p in self.protocols.items()]
        named += [(f"carve into {c.into}", s) for c in self.carve for s in (c.source, c.into)]
        for who, split in named:
            if split not in self.splits:
                raise ValueError(f"{who} names the split '{split}', which `splits` does not declare")
        return self

    @property
    def roles(self) -> dict[str, Role]:
        """Role of each split."""
        return {name: split.role for name, split in self.splits.items()}

    def label(self, spelling: str) -> str:
        """The dataset's class that `spelling` means. Raises DatasetError for an unknown one."""
        for name, aliases in self.classes.items():
            if taxonomy.folded(spelling) in map(taxonomy.folded, (name, *aliases)):
                return name
        fix = did_you_mean(spelling, self.classes)
        raise DatasetError(
            f"'{spelling}' is not a class of this dataset", where=self.name, key=spelling, fix=fix
        )


def load_card(name_or_path: str | Path) -> Card:
    """The card that his2lip carries under a name, or that a YAML file of the user's holds.

    Raises ConfigError for an unknown name, a missing file, or a card with a wrong key.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        return config.load(Card, resources.find(text))
    path = resources.root() / CARDS / f"{text}.yaml"
    if not path.is_file():
        raise ConfigError(f"no dataset card is named '{text}'", fix=did_you_mean(text, list_cards()))
    return config.load(Card, path)


def list_cards() -> list[str]:
    """Names of the cards that his2lip carries, sorted."""
    return sorted(path.stem for path in (resources.root() / CARDS).glob("*.yaml"))
