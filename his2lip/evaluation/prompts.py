"""Prompt sets: which sentences stand for which class, in a fixed order, with an identity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from his2lip import config, resources
from his2lip.errors import ConfigError, did_you_mean

PROMPTS_FOLDER = "benchmarks/prompts"


class PromptFile(config.Config):
    """A prompt file as it is written.

    With `templates`, each class lists synonyms, and its sentences are every template (with {} in it) filled
    by every synonym, template by template. Without, each class lists its sentences as they are.
    """

    note: str = ""
    templates: list[str] = []
    classes: dict[str, list[str]]


@dataclass(frozen=True)
class PromptSet:
    """Classes in order, each with its sentences in order; duplicates and shared sentences are kept."""

    name: str
    sentences: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def load(cls, name_or_path: str | Path) -> PromptSet:
        """The set called `name` in benchmarks/prompts, or the one in a YAML file at that path."""
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
        """Expands templates x synonyms. Raises ConfigError for an empty class or a template without {}."""
        templates = list(templates) or ["{}"]
        for template in templates:
            if template.count("{}") != 1:
                raise ConfigError(f"a template holds {{}} once, this does not: '{template}'", where=where)
        for label, words in classes.items():
            if not words or not all(w.strip() for w in words):
                raise ConfigError(f"the class '{label}' has an empty sentence or none", where=where)
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
        """sha256 of classes and sentences in order; the name does not count."""
        return config.digest([[label, list(lines)] for label, lines in self.sentences])

    def of(self, label: str) -> tuple[str, ...]:
        """The sentences of one class."""
        for known, lines in self.sentences:
            if known == label:
                return lines
        raise ConfigError(
            f"the prompt set '{self.name}' has no class '{label}'", fix=did_you_mean(label, self.classes)
        )

    def narrow(self, classes: Iterable[str]) -> PromptSet:
        """The same sentences for some classes only, in the order asked for."""
        return PromptSet(self.name, tuple((label, self.of(label)) for label in classes))

    def all_sentences(self) -> list[str]:
        """Every sentence of every class, in order, duplicates kept."""
        return [line for _, lines in self.sentences for line in lines]


def list_prompts() -> list[str]:
    """Names of the prompt sets that the project carries."""
    folder = resources.root() / PROMPTS_FOLDER
    return sorted(p.stem for p in folder.glob("*.yaml"))


def _find(name: str) -> Path:
    """The file of a prompt set: a path as given, else benchmarks/prompts/NAME.yaml."""
    if name.endswith((".yaml", ".yml")):
        return resources.find(name)
    path = resources.root() / PROMPTS_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no prompt set is called '{name}'", fix=did_you_mean(name, list_prompts()))
    return path
