"""What is asked of an image: its tissue type, a named biomarker's staining, or a guess at the biomarker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from his2lip import taxonomy
from his2lip.errors import ConfigError
from his2lip.evaluation.prompts import PromptSet

TISSUE, STAINING, GUESS = "tissue", "staining", "biomarker_guess"

# The sets that a benchmark protocol scores, so that its figures speak of these answers too; every other
# biomarker takes a set that is filled with its name, and that no protocol has measured.
_MEASURED = {"ER": "staining", "PR": "staining", "Ki67": "staining", "HER2": "her2_status"}
_NAMED = "marker_staining"
_PLACE = "{biomarker}"  # where a prompt has room for the name


@dataclass(frozen=True)
class Question:
    """A name for programs and one for people, prompts, and a temperature where one was fitted.

    `biomarker` is the canonical one that the question is about, None where it is about any.
    """

    name: str
    title: str
    prompts: PromptSet
    biomarker: str | None = None
    temperature: float | None = None


def ask(
    *,
    prompts: str | Path | PromptSet = "tissue",
    biomarker: str | None = None,
    guess_biomarker: bool = False,
) -> list[Question]:
    """The tissue type always; the staining of `biomarker` (any spelling) where named; a guess if asked for.

    Raises ConfigError for an unknown prompt set, TaxonomyError, naming the nearest, for an unknown biomarker.
    """
    name = None if biomarker is None else taxonomy.biomarker(biomarker)
    chosen = prompts if isinstance(prompts, PromptSet) else PromptSet.load(prompts)
    questions = [Question(TISSUE, "tissue type", _filled(chosen, name))]
    if name is not None:
        staining = _filled(PromptSet.load(_MEASURED.get(name, _NAMED)), name)
        questions.append(Question(STAINING, f"{name} staining", staining, name))
    if guess_biomarker:
        questions.append(Question(GUESS, "biomarker (a guess)", PromptSet.load("biomarker")))
    return questions


def _filled(prompts: PromptSet, biomarker: str | None) -> PromptSet:
    """The sentences with the biomarker's name where they leave room for one."""
    if not any(_PLACE in line for line in prompts.all_sentences()):
        return prompts
    if biomarker is None:
        said = f"the prompt set '{prompts.name}' wants the name of a biomarker"
        raise ConfigError(said, mend="add --biomarker NAME")
    named = (
        (label, tuple(line.replace(_PLACE, biomarker) for line in lines))
        for label, lines in prompts.sentences
    )
    return PromptSet(prompts.name, tuple(named))
