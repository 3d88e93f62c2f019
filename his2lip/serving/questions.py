"""What is asked of an image: its tissue type, a named biomarker's staining, or a guess at the biomarker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from his2lip import taxonomy
from his2lip.evaluation.prompts import PromptSet

TISSUE, STAINING, GUESS = "tissue", "staining", "biomarker_guess"

# The sets that a benchmark protocol scores, so that its figures speak of these answers too; every other
# biomarker takes a set that is filled with its name, and that no protocol has measured.
_MEASURED = {"ER": "staining", "PR": "staining", "Ki67": "staining", "HER2": "her2_status"}
_NAMED = "marker_staining"


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
    chosen = prompts if isinstance(prompts, PromptSet) else PromptSet.load(prompts)
    questions = [Question(TISSUE, "tissue type", chosen)]
    if biomarker is not None:
        name = taxonomy.biomarker(biomarker)
        questions.append(Question(STAINING, f"{name} staining", _staining(name), name))
    if guess_biomarker:
        questions.append(Question(GUESS, "biomarker (a guess)", PromptSet.load("biomarker")))
    return questions


def _staining(biomarker: str) -> PromptSet:
    """Positive and negative, of a canonical biomarker."""
    found = PromptSet.load(_MEASURED.get(biomarker, _NAMED))
    named = (
        (label, tuple(line.replace("{biomarker}", biomarker) for line in lines))
        for label, lines in found.sentences
    )
    return PromptSet(found.name, tuple(named))
