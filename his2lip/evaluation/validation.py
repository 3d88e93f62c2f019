"""Zero-shot validation of a model in training, by a protocol of the dataset's card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from his2lip import taxonomy
from his2lip.config import digest, resolved
from his2lip.data.cards import PROTOCOL_REMARKS, Protocol
from his2lip.data.shards import LEARNING_ROLES, ShardSet, open_shards, patch_scale, resolve_split
from his2lip.errors import ConfigError, DatasetError, did_you_mean
from his2lip.evaluation.config import DEFAULT_PROTOCOL
from his2lip.evaluation.embeddings import encode_rows
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.metrics import Predictions, accuracy, macro_f1
from his2lip.evaluation.prompts import PromptSet, is_carried
from his2lip.evaluation.protocols import Selection, drawn, select, top_of, view_of
from his2lip.evaluation.retrieval import NEVER, NO_CLASS, Items, rank
from his2lip.evaluation.views import TrainingField
from his2lip.evaluation.zero_shot import score, unit_rows
from his2lip.runtime import usable_cpus

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

# Fields of a protocol that do not decide the figures of the select split.
_UNUSED = PROTOCOL_REMARKS | {"version", "split", "breakdown"}
_MOST = 1000  # captions that images search, and that search images
# Columns that a dataset without protocols is scored by, the first with two classes or more, and their names.
_COLUMNS = {"tissue": taxonomy.TISSUES, "biomarker": taxonomy.BIOMARKERS}


@dataclass(frozen=True)
class SelectValidator:
    """Macro F1 and accuracy of a model's current weights. Nothing is cached, since they change every step.

    `protocol` is the name of a protocol of the dataset's card, by default `default`; its rows, classes,
    prompts and view are applied to `split`. Features are compared as the model in training compares them. A
    dataset whose card has no protocols is scored by its tissue types, or else by its biomarkers.

    The validator consists of names and sentences only, so that it can be sent to workers.
    """

    shards: str
    split: str = "select"
    protocol: str | None = None
    batch_size: int = 64
    threads: int | None = None  # that decode images; default: one per usable core
    prompts: PromptSet | None = None  # default: the protocol's, read where the validator is called
    captions: tuple[tuple[str, str, str], ...] = ()  # text, tissue type, biomarker; none of them trained on
    own_prompts: str | None = None  # digest of `prompts` where they are from a file of one's own
    own_protocol: str | None = None  # digest of the protocol where it is from a card of one's own

    def check(self) -> SelectValidator:
        """The same validator with its prompts, for workers that may run in other folders.

        Raises DatasetError or ConfigError where the validation cannot work with this dataset.
        """
        shards, protocol, selection = self._plan()
        prompts = PromptSet.load(protocol.prompts).narrow(selection.classes)
        if self.captions:
            shown = set(self._pairs(shards, selection).values())
            if not any(caption[1:] in shown for caption in self.captions):
                raise ConfigError(
                    f"no caption that training leaves out is of a pair of the split '{self.split}'",
                    where=self.shards,
                    key="data.select_captions",
                    fix="give captions of its tissue types and biomarkers, or set data.select_captions=0",
                )
        own = None if is_carried(protocol.prompts) else prompts.digest
        own_protocol = None
        if shards.project_card() is None:
            decide = {key: value for key, value in resolved(protocol).items() if key not in _UNUSED}
            # A file of prompts counts by its content.
            own_protocol = digest(decide | {"prompts": protocol.prompts if own is None else None})
        return replace(self, prompts=prompts, own_prompts=own, own_protocol=own_protocol)

    def __call__(self, model: DualEncoder) -> dict[str, float]:
        """macro_f1 and accuracy, and with captions also retrieval; fractions.

        Raises DatasetError for a `report` split: it chooses no model.
        """
        model = model.lowered()
        shards, protocol, selection = self._plan()
        split = resolve_split(shards, self.split, roles=LEARNING_ROLES, key="data.select")
        view = view_of(protocol, TrainingField.of({"patch": patch_scale(shards, split)}))
        encoder = ModelEncoder(model, view=view, preprocessing=protocol.preprocessing)
        rows = selection.rows.tolist()
        threads = self.threads or usable_cpus()
        stream = encode_rows(encoder, shards, split, rows, batch_size=self.batch_size, threads=threads)
        unit_of_row = dict(zip(rows, selection.unit.tolist(), strict=True))
        images, units, shown = [], [], []
        for row, features in stream:
            images.append(features)
            units += [unit_of_row[row]] * len(features)
            shown += [row] * len(features)
        sentences = SentenceEncoder(model)
        prompts = (self.prompts or PromptSet.load(protocol.prompts)).narrow(selection.classes)
        predicted = score(
            np.concatenate(images),
            [sentences.encode(list(lines)) for _, lines in prompts.sentences],
            pooling=protocol.pooling,
            scoring=model.similarity,
            groups=np.array(units, dtype=np.int64),
            top=top_of(protocol),
        ).predicted
        scored = selection.scored
        found = Predictions(selection.labels[scored], predicted[scored], selection.classes)
        figures = {"macro_f1": float(macro_f1(found.counts)), "accuracy": float(accuracy(found.counts))}
        if self.captions:
            pairs = self._pairs(shards, selection)
            # Their order decides between equal similarities; that of the rows is often that of the classes.
            order = drawn([selection.unit_ids[unit] for unit in units], len(units), 0)
            figures["retrieval"] = self._retrieval(
                model, np.concatenate(images)[order], [pairs[shown[place]] for place in order]
            )
        return figures

    def _retrieval(
        self, model: DualEncoder, images: np.ndarray, labels: list[tuple[str | None, str | None]]
    ) -> float:
        """Mean average precision, mean of both directions: images search captions, and the reverse.

        images  float (N, D) of patches or tiles, with labels (tissue type, biomarker); an image and a caption
                of the same tissue type and biomarker are relevant to each other; in an order that is not
                related to these, as `rank` needs
        At most `_MOST` captions are used, of pairs that occur among the images.
        """
        present = {pair: i for i, pair in enumerate(sorted({pair for pair in labels if None not in pair}))}
        known = [caption for caption in self.captions if caption[1:] in present]
        known = [known[i] for i in drawn([" ".join(caption) for caption in known], _MOST, 0)]
        texts = SentenceEncoder(model).encode([text for text, *_ in known])
        if model.similarity == "cosine":
            images, texts = unit_rows(images), unit_rows(texts)
        n, m = len(images), len(texts)
        classes = np.array([present.get(pair, NO_CLASS) for pair in labels], dtype=np.int64)
        never = np.full(n + m, NEVER)
        shown = Items(images, classes, np.arange(n), never[:n])
        of_texts = np.array([present[caption[1:]] for caption in known], dtype=np.int64)
        said = Items(texts, of_texts, -1 - np.arange(m), never[n:])
        both = [rank(asked, searched)[0].figures() for asked, searched in ((shown, said), (said, shown))]
        return float(np.mean([figures["mean_average_precision"] for figures in both]))

    def _pairs(self, shards: ShardSet, selection: Selection) -> dict[int, tuple[str | None, str | None]]:
        """Tissue type and biomarker of each row that is shown."""
        split = resolve_split(shards, self.split, roles=LEARNING_ROLES, key="data.select")
        table = shards.table(split, ["tissue", "biomarker"]).take(selection.rows)
        pairs = zip(table["tissue"].to_pylist(), table["biomarker"].to_pylist(), strict=True)
        return dict(zip(selection.rows.tolist(), pairs, strict=True))

    def _plan(self) -> tuple[ShardSet, Protocol, Selection]:
        shards = open_shards(self.shards)
        split = resolve_split(shards, self.split, roles=LEARNING_ROLES, key="data.select")
        protocol = self._protocol(shards, split)
        return shards, protocol, select(shards, protocol, split=split)

    def _protocol(self, shards: ShardSet, split: str) -> Protocol:
        known = shards.card().protocols
        name = self.protocol or DEFAULT_PROTOCOL
        if name in known:
            return known[name]
        if self.protocol is None:
            return _protocol_of_labels(shards, split)
        fix = did_you_mean(name, known) if known else "set data.protocol to null"
        raise ConfigError(
            f"the dataset has no protocol '{name}'", where=self.shards, key="data.protocol", fix=fix
        )


def _protocol_of_labels(shards: ShardSet, split: str) -> Protocol:
    """A protocol for a dataset whose card has none: the names of the taxonomy that occur in the split."""
    table = shards.table(split, list(_COLUMNS))
    for column, names in _COLUMNS.items():
        present = set(table[column].to_pylist())
        classes = {name: [name] for name in names if name in present}
        if len(classes) > 1:
            tree = {"split": split, "label": column, "classes": classes, "prompts": column, "basis": "ours"}
            return Protocol.model_validate(tree)
    raise DatasetError(
        f"the split '{split}' has fewer than two tissue types and fewer than two biomarkers to score by",
        where=shards.uri,
        key="data.select",
        fix="declare a protocol in the dataset's card, or set data.select=null",
    )
