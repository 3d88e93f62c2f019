"""Questions to ask of an image: tissue type, staining of a biomarker, and which biomarker is stained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from his2lip import taxonomy
from his2lip.errors import ConfigError
from his2lip.evaluation import PromptSet

TISSUE, STAINING, GUESS = "tissue", "staining", "biomarker_guess"

# Prompt sets that a benchmark protocol scores, so that its figures also apply to these answers. Every other
# biomarker uses a set with a placeholder for its name, which no protocol has measured.
_MEASURED = {"ER": "staining", "PR": "staining", "Ki67": "staining", "HER2": "her2_status"}
_GENERIC = "marker_staining"
_PLACEHOLDER = "{biomarker}"


@dataclass(frozen=True)
class Question:
    """A question with its prompts, and a temperature where one was fitted.

    name       identifier for programs; title: for people
    biomarker  canonical name of the biomarker that the question is about; None where it is about any
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
    """The question for the tissue type, then for the staining of `biomarker`, then for the biomarker.

    The second is asked where `biomarker` (any spelling) is named, the third where `guess_biomarker` is set.
    Raises ConfigError for an unknown prompt set, TaxonomyError for an unknown biomarker.
    """
    name = None if biomarker is None else taxonomy.biomarker(biomarker)
    chosen = prompts if isinstance(prompts, PromptSet) else PromptSet.load(prompts)
    questions = [Question(TISSUE, "tissue type", _filled(chosen, name))]
    if name is not None:
        staining = _filled(PromptSet.load(_MEASURED.get(name, _GENERIC)), name)
        questions.append(Question(STAINING, f"{name} staining", staining, name))
    if guess_biomarker:
        questions.append(Question(GUESS, "biomarker (a guess)", PromptSet.load("biomarker")))
    return questions


def _filled(prompts: PromptSet, biomarker: str | None) -> PromptSet:
    """The sentences with the biomarker's name in place of the placeholder, where they have one."""
    if not any(_PLACEHOLDER in line for line in prompts.all_sentences()):
        return prompts
    if biomarker is None:
        what = f"the prompt set '{prompts.name}' needs the name of a biomarker"
        raise ConfigError(what, key="--biomarker", fix="add --biomarker NAME")
    named = (
        (label, tuple(line.replace(_PLACEHOLDER, biomarker) for line in lines))
        for label, lines in prompts.sentences
    )
    return PromptSet(prompts.name, tuple(named))
