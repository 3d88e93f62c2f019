"""Prompt sets: the pool of sentences of each class, in a fixed order, with a digest."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from his2lip import config, resources
from his2lip.errors import ConfigError, did_you_mean

PROMPTS_FOLDER = "benchmarks/prompts"
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")

# British spellings in pathology -> the American ones. They are replaced inside words too: tumours, fibres.
_AMERICAN = {
    "tumour": "tumor",
    "haemat": "hemat",
    "oestrogen": "estrogen",
    "centred": "centered",
    "centre": "center",
    "fibre": "fiber",
    "colour": "color",
    "grey": "gray",
    "artefact": "artifact",
}
_BRITISH = re.compile("|".join(sorted(_AMERICAN, key=len, reverse=True)), flags=re.IGNORECASE)


class PromptFile(config.Config):
    """The content of a prompt file. It gives the sentences of each class in one of three ways.

    - `classes` alone: each class lists its sentences.
    - `classes` and `templates`: each class lists synonyms. Its sentences are every template, with {} replaced
      by every synonym, template by template.
    - `slots` and `templates`: a class is a combination of one name of each slot, joined by a space. Its
      sentences are every template, with each {SLOT} replaced by every synonym of that name.
    """

    note: str = ""
    templates: list[str] = []
    classes: dict[str, list[str]] = {}
    slots: dict[str, dict[str, list[str]]] = {}
    """Slot -> name -> synonyms, such as tissue -> Tumor -> [tumour tissue, carcinoma]."""
    both_spellings: bool = False
    """Whether a sentence with British spelling is followed by the same sentence in American spelling."""


@dataclass(frozen=True)
class PromptSet:
    """Classes in order, each with its sentences in order. Duplicate and shared sentences are kept."""

    name: str
    sentences: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def load(cls, name_or_path: str | Path, *, placeholders: Collection[str] = ()) -> PromptSet:
        """The set of that name in benchmarks/prompts, or the one in the YAML file at that path.

        placeholders  those that the caller fills, such as {biomarker}; a sentence with another is refused
        """
        path = _find(str(name_or_path))
        source = config.validate(PromptFile, config.read_yaml(path), where=path)
        if source.slots:
            if source.classes:
                what = "a prompt file has either `classes` or `slots`"
                raise ConfigError(what, where=path, key="slots", fix="remove one of them")
            found = cls.combine(path.stem, source.slots, templates=source.templates, where=path)
        else:
            found = cls.build(path.stem, source.classes, templates=source.templates, where=path)
        _check_filled(found, placeholders, path)
        return found.in_both_spellings() if source.both_spellings else found

    @classmethod
    def build(
        cls,
        name: str,
        classes: Mapping[str, Sequence[str]],
        *,
        templates: Iterable[str] = (),
        where: str | Path | None = None,
    ) -> PromptSet:
        """Combines templates and synonyms. Raises ConfigError for an empty class or a template without {}."""
        templates = list(templates) or ["{}"]
        if not classes:
            fix = "write `classes:` with the sentences of each class below it"
            raise ConfigError("this prompt set has no class", where=where, key="classes", fix=fix)
        _check_synonyms(classes, where)
        _check_templates(templates, ["{}"], where)
        return cls(
            name,
            tuple(
                (label, tuple(t.replace("{}", word) for t in templates for word in words))
                for label, words in classes.items()
            ),
        )

    @classmethod
    def combine(
        cls,
        name: str,
        slots: Mapping[str, Mapping[str, Sequence[str]]],
        *,
        templates: Iterable[str],
        where: str | Path | None = None,
    ) -> PromptSet:
        """One class for each combination of one name of each slot, with the sentences of all its synonyms.

        Raises ConfigError for an empty slot or name, for a template that has not every {SLOT} once, and where
        two combinations have one name.
        """
        templates = list(templates) or [""]
        for slot, names in slots.items():
            if not names:
                fix = "list its names, each with its synonyms"
                raise ConfigError(f"the slot '{slot}' has no name", where=where, key=slot, fix=fix)
            _check_synonyms(names, where)
        holes = [f"{{{slot}}}" for slot in slots]
        _check_templates(templates, holes, where)
        found: dict[str, tuple[str, ...]] = {}
        for chosen in itertools.product(*(names.items() for names in slots.values())):
            label = " ".join(name for name, _ in chosen)
            if label in found:
                fix = "rename one of them, so that the names of its slots differ when joined by a space"
                raise ConfigError(f"two classes are called '{label}'", where=where, key=label, fix=fix)
            found[label] = tuple(
                _fill(template, dict(zip(holes, words, strict=True)))
                for template in templates
                for words in itertools.product(*(synonyms for _, synonyms in chosen))
            )
        return cls(name, tuple(found.items()))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(label for label, _ in self.sentences)

    @property
    def digest(self) -> str:
        """sha256 of classes and sentences in order, without the name."""
        return config.digest([[label, list(lines)] for label, lines in self.sentences])

    def of(self, label: str) -> tuple[str, ...]:
        """The sentences of one class."""
        for known, lines in self.sentences:
            if known == label:
                return lines
        raise ConfigError(
            f"the prompt set '{self.name}' has no class '{label}'",
            key=label,
            fix=did_you_mean(label, self.classes),
        )

    def narrow(self, classes: Iterable[str]) -> PromptSet:
        """The same sentences for `classes` only, in that order."""
        return PromptSet(self.name, tuple((label, self.of(label)) for label in classes))

    def all_sentences(self) -> list[str]:
        """Every sentence of every class, in order, duplicates kept."""
        return [line for _, lines in self.sentences for line in lines]

    def in_both_spellings(self) -> PromptSet:
        """Each sentence with British spelling is followed by the same sentence in American spelling."""
        return PromptSet(
            self.name,
            tuple(
                (label, tuple(form for line in lines for form in dict.fromkeys((line, american(line)))))
                for label, lines in self.sentences
            ),
        )


def of_protocol(prompts: Mapping[str, str], dataset: str, protocol: str) -> str | None:
    """The prompt set that a mapping by DATASET/PROTOCOL or DATASET gives a protocol."""
    return prompts.get(f"{dataset}/{protocol}") or prompts.get(dataset)


def dataset_and_protocol(key: str, datasets: Sequence[str]) -> tuple[str, str | None]:
    """The dataset and the protocol that a key of such a mapping names; None: every protocol of the dataset.

    `datasets` are the known ones, whose names may have slashes. A key of none of them ends its dataset at the
    first slash.
    """
    if key in datasets:
        return key, None
    before = next((name for name in datasets if key.startswith(f"{name}/")), key.partition("/")[0])
    return before, key.removeprefix(before).removeprefix("/") if "/" in key else None


def american(sentence: str) -> str:
    """The sentence in American spelling: tumor for tumour, hematoxylin for haematoxylin, and the like."""

    def replace(found: re.Match[str]) -> str:
        word = found[0]
        spelt = _AMERICAN[word.lower()]
        return spelt.capitalize() if word[0].isupper() else spelt

    return _BRITISH.sub(replace, sentence)


def is_carried(name: str) -> bool:
    """Whether a prompt set is one that the project carries, rather than a file of one's own."""
    return _find(name).resolve().parent == (resources.root() / PROMPTS_FOLDER).resolve()


def list_prompts() -> list[str]:
    """Names of the prompt sets that the project carries."""
    folder = resources.root() / PROMPTS_FOLDER
    return sorted(p.stem for p in folder.glob("*.yaml"))


def _check_synonyms(classes: Mapping[str, Sequence[str]], where: str | Path | None) -> None:
    for label, words in classes.items():
        if not words or not all(w.strip() for w in words):
            what = f"the class '{label}' has no sentence, or an empty one"
            fix = "write at least one sentence or synonym for it"
            raise ConfigError(what, where=where, key=label, fix=fix)


def _fill(template: str, words: Mapping[str, str]) -> str:
    """The template with every placeholder of `words` filled; placeholders in the words stay."""
    return _PLACEHOLDER.sub(lambda found: words.get(found[0], found[0]), template)


def _check_filled(prompts: PromptSet, placeholders: Collection[str], where: str | Path) -> None:
    """A placeholder that nothing fills would be read by the model as it is written."""
    for line in prompts.all_sentences():
        for found in _PLACEHOLDER.findall(line):
            if found not in placeholders:
                what = f"nothing fills {found} in the sentence '{line}'"
                fix = "correct its name, or write the words in its place"
                raise ConfigError(what, where=where, key=found, fix=fix)


def _check_templates(templates: Iterable[str], holes: Iterable[str], where: str | Path | None) -> None:
    """Each hole must occur once in each template."""
    for template in templates:
        for hole in holes:
            if template.count(hole) != 1:
                what = f"a template must contain {hole} once, and this one does not: '{template}'"
                fix = "templates without `slots` have {}, and those with `slots` have each {SLOT}"
                raise ConfigError(what, where=where, key=template, fix=fix)


def _find(name: str) -> Path:
    """The file of a prompt set: the given path, or benchmarks/prompts/NAME.yaml."""
    if name.endswith((".yaml", ".yml")):
        return resources.find(name)
    path = resources.root() / PROMPTS_FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    if os.sep in name or Path(name).suffix or Path(name).is_file():  # a file, and not the name of a set
        what, fix = "the name of a prompt file ends in .yaml or .yml", "give it such a name; JSON is YAML too"
        raise ConfigError(what, where=name, key=name, fix=fix)
    raise ConfigError(f"no prompt set is called '{name}'", key=name, fix=did_you_mean(name, list_prompts()))
