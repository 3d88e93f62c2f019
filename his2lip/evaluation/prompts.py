"""Prompt sets: the sentences of each class, in a fixed order, with a digest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from his2lip import config, resources
from his2lip.errors import ConfigError, did_you_mean

PROMPTS_FOLDER = "benchmarks/prompts"


class PromptFile(config.Config):
    """The content of a prompt file.

    With `templates`, each class lists synonyms; its sentences are every template, with {} replaced by every
    synonym, template by template. Without `templates`, each class lists its sentences.
    """

    note: str = ""
    templates: list[str] = []
    classes: dict[str, list[str]]


@dataclass(frozen=True)
class PromptSet:
    """Classes in order, each with its sentences in order. Duplicate and shared sentences are kept."""

    name: str
    sentences: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def load(cls, name_or_path: str | Path) -> PromptSet:
        """The set of that name in benchmarks/prompts, or the one in the YAML file at that path."""
        path = _find(str(name_or_path))
        source = config.validate(PromptFile, config.read_yaml(path), where=path)
        return cls.build(path.stem, source.classes, templates=source.templates, where=path)

    @classmethod
    def build(
        cls,
        name: str,
        classes: dict[str, list[str]],
        *,
        templates: Iterable[str] = (),
        where: str | Path | None = None,
    ) -> PromptSet:
        """Combines templates and synonyms. Raises ConfigError for an empty class or a template without {}."""
        templates = list(templates) or ["{}"]
        for template in templates:
            if template.count("{}") != 1:
                what = f"a template must contain {{}} once, and this one does not: '{template}'"
                raise ConfigError(what, where=where, key=template)
        for label, words in classes.items():
            if not words or not all(w.strip() for w in words):
                what = f"the class '{label}' has no sentence, or an empty one"
                raise ConfigError(what, where=where, key=label)
        return cls(
            name,
            tuple(
                (label, tuple(t.replace("{}", word) for t in templates for word in words))
                for label, words in classes.items()
            ),
        )

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


def list_prompts() -> list[str]:
    """Names of the prompt sets that the project carries."""
    folder = resources.root() / PROMPTS_FOLDER
    return sorted(p.stem for p in folder.glob("*.yaml"))


def _find(name: str) -> Path:
    """The file of a prompt set: the given path, or benchmarks/prompts/NAME.yaml."""
    if name.endswith((".yaml", ".yml")):
        return resources.find(name)
    path = resources.root() / PROMPTS_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"no prompt set is called '{name}'", key=name, fix=did_you_mean(name, list_prompts())
        )
    return path
