"""Dataset cards: the YAML that declares a dataset's source, licence, layout, splits and protocols."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from his2lip import config, resources, taxonomy
from his2lip.config import Config, OptionError
from his2lip.errors import ConfigError, DatasetError, did_you_mean

CARDS = "benchmarks/datasets"  # relative to `resources.root()`

# Limits of microns per pixel of a microscope's image; published slides lie between 0.1 and 10.
MIN_MPP, MAX_MPP = 0.05, 20.0
Mpp = Annotated[float, pydantic.Field(ge=MIN_MPP, le=MAX_MPP)]

Role = Literal["train", "select", "report"]
Grouping = Literal["case", "slide", "region", "file"]
LabelsOf = Literal["patch", "slide", "case"]


def _check_split_name(name: str) -> str:
    """Refuses names that lead out of a folder, since a folder of shards gets the split's name."""
    if re.fullmatch(r"\w[\w.-]*", name) is None:
        raise ValueError("a split's name is made of letters, digits, '.', '-' and '_'")
    return name


SplitName = Annotated[str, pydantic.AfterValidator(_check_split_name)]


class Source(Config):
    """Where the authors publish the dataset."""

    record: str | None = None
    """An identifier, such as `Zenodo 10065510`."""
    url: str | None = None
    access: Literal["open", "registration", "request", "local", "unknown"] = "unknown"


class Licence(Config):
    """Terms of use as fields, so that programs can check them. None: unknown."""

    name: str = "unknown"
    spdx: str | None = None
    """The licence's identifier in the SPDX list."""
    attribution: bool | None = None
    """Whether the dataset must be cited."""
    commercial_use: bool | None = None
    derivatives: bool | None = None
    """Whether works may be derived from the dataset, such as a trained model."""
    share_alike: bool | None = None
    """Whether derived works must be shared under the same licence."""
    note: str | None = None


class Published(Config):
    """The content of the dataset as its authors or the paper state it. A difference is only a warning."""

    unit: str = "patch"
    images: int | None = None
    """Number of images in the paper's Table 1."""
    size_px: int | None = None
    """Pixels per side of an image."""
    counts: dict[str, dict[str, int]] = {}
    """Split -> label, or `all` -> number of images."""
    note: str | None = None


class Split(Config):
    """One split of the dataset."""

    role: Role
    """What the split may be used for: train, select (choice of models) or report (reported figures)."""
    origin: Literal["official", "ours"] = "official"
    """Who defined the split."""
    groups: Grouping | None = None
    """What lies in one split only; null: unknown."""
    recurs: str | None = None
    """What may be in other splits too."""
    repeats: list[SplitName] = []
    """Other splits of which it repeats images, because the authors publish several partitions of one set."""


class Carve(Config):
    """Moves groups of one split into another; a hash of its name and the seed decides for each group."""

    source: str
    into: str
    fraction: float = pydantic.Field(gt=0, lt=1)
    """Share of the groups that is moved, on average."""
    by: Grouping
    seed: int = 0


# Fields of a protocol that explain it and decide no figure.
PROTOCOL_REMARKS = {"note", "basis", "pool_reason", "changelog"}


class Protocol(Config):
    """How a split is scored: which rows, which classes, which prompts, and how images and logits are treated.

    The rows of `split` that match `where` are selected. A selected row is

    - scored, as the class whose list in `classes` has the row's value of the column `label`;
    - else predicted and reported without a score, if a list in `apart` has that value;
    - else left out.
    """

    split: str
    label: Literal["tissue", "biomarker", "label", "score", "pair"]
    """The column of the labels. pair: "{tissue} {biomarker}"."""
    classes: dict[str, list[str]]
    """Class -> labels."""
    prompts: str
    """A prompt file, or the name of one of benchmarks/prompts."""
    where: dict[str, list[str]] = {}
    """Column -> allowed values; a row must match all of them."""
    apart: dict[str, list[str]] = {}
    """Name -> labels that are reported, but not scored."""
    unit: Literal["patch", "image", "slide"] = "patch"
    """What is scored once. image, slide: the rows with the same value of `pool_by` are pooled."""
    pool_by: str | None = None
    view: Literal["squash", "centre", "tiles"] = "squash"
    """How an image that is larger than the model's input is shown to the model: resized whole, its centre
    cropped, or as tiles on its tissue."""
    tile_um: pydantic.PositiveFloat | None = None
    """Microns per side of a tile; null: what the model saw per input side in training."""
    coverage: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Share of an image's tissue that its tiles must show; tiles are added until they do."""
    max_tiles: pydantic.PositiveInt | None = None
    """Largest number of tiles per image, even if they show less tissue than `coverage`."""
    tile_pool: Literal["mean", "max", "top-k"] = "mean"
    """How the tiles of a unit become one score: the mean of all tiles, or only the tile (max) or the share
    `tile_share` of the tiles (top-k) that look most like the class `event`."""
    event: str | None = None
    """The class whose signs may be rare in an image; max and top-k need it."""
    tile_share: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share of the tiles that top-k uses; at least one tile."""
    pool_reason: str | None = None
    """Why the tiles are pooled in this way."""
    pooling: Literal["mean_embedding", "mean_logit", "max"] = "mean_embedding"
    """How the sentences of a class become one logit."""
    scoring: Literal["cosine", "dot"] = "cosine"
    preprocessing: Literal["native", "released"] = "native"
    """native: the model's own. released: mean and standard deviation of MIHIC, as in the paper's code."""
    ordinal: bool = False
    """Whether the classes are ordered, so that quadratic kappa is reported too."""
    breakdown: str | None = None
    """A column: figures are also reported for each of its values."""
    basis: Literal["published", "inferred", "ours"]
    """Where the protocol comes from: the publication, its figures, or this project."""
    note: str | None = None
    version: pydantic.PositiveInt = 1
    """Raised with every change that can change a figure."""
    changelog: dict[int, str] = {}
    """Version -> what changed in it, from version 2 on."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_earlier(cls, tree: Any) -> Any:
        """Cards that are stored with earlier shards have `tile_mpp`, for tiles of 128 px."""
        if not isinstance(tree, dict) or "tile_mpp" not in tree:
            return tree
        mpp = tree["tile_mpp"]
        kept = {key: value for key, value in tree.items() if key != "tile_mpp"}
        return kept if mpp is None else {"tile_um": 128 * mpp} | kept

    @pydantic.model_validator(mode="after")
    def _check_pooling(self) -> Protocol:
        if self.tile_pool != "mean" and self.event not in self.classes:
            what = f"tile_pool: {self.tile_pool} needs an event, one of the classes {', '.join(self.classes)}"
            raise OptionError(what, key="event")
        unexplained = [n for n in range(2, self.version + 1) if n not in self.changelog]
        if unexplained or any(n > self.version for n in self.changelog):
            what = f"the changelog must explain each version from 2 to {self.version}"
            raise OptionError(what, key="changelog")
        return self

    @pydantic.model_validator(mode="after")
    def _check_classes(self) -> Protocol:
        labels = [label for listed in (*self.classes.values(), *self.apart.values()) for label in listed]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if repeated:
            raise OptionError(f"the label '{repeated[0]}' is listed more than once", key="classes")
        if len(self.classes) < 2:
            raise OptionError("a protocol must have at least two classes", key="classes")
        return self


class Card(Config):
    """One dataset, as its YAML declares it. Only `name`, `reader` and `splits` are required."""

    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    reader: str
    """The reader of the dataset's layout (`his2lip.data.readers.READERS`)."""
    splits: dict[SplitName, Split]
    title: str = ""
    options: dict[str, Any] = {}
    """Options of the reader."""
    source: Source = Source()
    licence: Licence = Licence()
    citation: str = ""
    organ: list[str] = []
    """The organs of the tissue."""
    organ_by: dict[str, dict[str, str]] = {}
    """Column of the shards -> value -> organ: tells the organ of a patch of a dataset with several organs."""
    scanner: str | None = None
    magnification: pydantic.PositiveFloat | None = None
    """Of the scanner's objective, such as 40; nothing is computed from it."""
    mpp: Mpp | None = None
    """Microns per pixel; null: unknown."""
    mpp_basis: Literal["published", "inferred", "unknown"] = "unknown"
    """Where `mpp` comes from."""
    stain: str | None = None
    """Stain of the images for which the reader gives none."""
    published: Published = Published()
    classes: dict[str, list[str]] = {}
    """The dataset's own classes -> other spellings of each."""
    labels_of: LabelsOf = "patch"
    """What the authors gave a label to. slide, case: all its patches share one. Where the patches do not name
    it, no interval can be computed."""
    staining: dict[str, Literal["negative", "weak", "moderate", "strong", "positive"]] = {}
    """Class -> the staining that it states, for captions; needed where the class's name does not say so."""
    descriptions: dict[str, str] = {}
    """Class -> what its images show, in words for captions; default: the class's name."""
    carve: list[Carve] = []
    protocols: dict[str, Protocol] = {}
    in_domain: bool = False
    """Whether the paper's models were trained on it; if so, it is left out of zero-shot means."""
    pretraining: dict[str, Literal["no", "yes", "possible", "unknown"]] = {}
    """Backbone -> whether its pretraining data may have had these images."""
    differences: list[str] = []
    """Differences from the paper's Table 1."""
    unknown: list[str] = []
    """Facts that could not be found out."""

    @pydantic.model_validator(mode="after")
    def _check_splits(self) -> Card:
        named = [(f"protocols.{name}.split", protocol.split) for name, protocol in self.protocols.items()]
        for number, carve in enumerate(self.carve):
            named += [(f"carve.{number}.source", carve.source), (f"carve.{number}.into", carve.into)]
        named += [(f"splits.{name}.repeats", other) for name, s in self.splits.items() for other in s.repeats]
        for key, split in named:
            if split not in self.splits:
                raise OptionError(f"`splits` does not declare the split '{split}'", key=key)
        for column, organs in self.organ_by.items():
            for value, organ in organs.items():
                if organ not in self.organ:
                    what = f"`organ` does not declare the organ '{organ}'"
                    raise OptionError(what, key=f"organ_by.{column}.{value}")
        for key, given in (("staining", self.staining), ("descriptions", self.descriptions)):
            for name in given:
                if self.classes and name not in self.classes:
                    raise OptionError(f"`classes` does not declare the class '{name}'", key=f"{key}.{name}")
        return self

    @property
    def roles(self) -> dict[str, Role]:
        """Split -> role."""
        return {name: split.role for name, split in self.splits.items()}

    def organ_of(self, patch: Mapping[str, str | None]) -> str | None:
        """The organ of a patch, by the columns of `organ_by`; the card's organ where it has one only."""
        if len(self.organ) == 1:
            return self.organ[0]
        found = (organs.get(patch[column] or "") for column, organs in self.organ_by.items())
        return next(filter(None, found), None)

    def label(self, spelling: str) -> str:
        """The dataset's class that `spelling` names. Raises DatasetError for an unknown class."""
        for name, aliases in self.classes.items():
            if taxonomy.folded(spelling) in map(taxonomy.folded, (name, *aliases)):
                return name
        what = f"'{spelling}' is not a class of this dataset"
        fix = did_you_mean(spelling, self.classes)
        raise DatasetError(what, where=self.name, key=spelling, fix=fix)


def load_card(name_or_path: str | Path) -> Card:
    """The card of a name in `list_cards`, or of a YAML file (a path that ends in .yaml or .yml).

    Raises ConfigError for an unknown name, a missing file, and a card that is not valid.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        return config.load(Card, resources.find(text))
    path = resources.root() / CARDS / f"{text}.yaml"
    if not path.is_file():
        what = f"no dataset card is named '{text}'"
        raise ConfigError(what, key=text, fix=did_you_mean(text, list_cards()))
    return config.load(Card, path)


def is_project_card(card: Card) -> bool:
    """Whether `card` is one of `list_cards`, unchanged; False for a card of one's own of the same name."""
    return card.name in list_cards() and card == load_card(card.name)


def list_cards() -> list[str]:
    """Names of the cards that are part of the package, sorted."""
    return sorted(path.stem for path in (resources.root() / CARDS).glob("*.yaml"))
