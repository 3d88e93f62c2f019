"""Questions to ask of an image: tissue type, staining of a biomarker, and which biomarker is stained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from his2lip import taxonomy
from his2lip.errors import ConfigError
from his2lip.evaluation import PromptSet

TISSUE, STAINING, GUESS = "tissue", "staining", "biomarker_guess"

# Biomarker -> the prompt set of its benchmark protocols, whose figures also apply to these answers. All other
# biomarkers use one set with a placeholder for their name, which no protocol scores.
_MEASURED = {"ER": "staining", "PR": "staining", "Ki67": "staining", "HER2": "her2_status"}
_GENERIC = "marker_staining"
_PLACEHOLDER = "{biomarker}"


@dataclass(frozen=True)
class Question:
    """A question to ask of an image.

    name         identifier for programs
    title        name for people
    prompts      the classes and their sentences
    biomarker    canonical name of the biomarker that the question is about, if it is about one
    temperature  fitted by calibration; None: the answers have no probabilities
    calibrated   dataset, split and size of the calibration, in words
    """

    name: str
    title: str
    prompts: PromptSet
    biomarker: str | None = None
    temperature: float | None = None
    calibrated: str = "not calibrated"

    @property
    def about_staining(self) -> bool:
        """Whether only an image with a chromogen can answer it."""
        return self.biomarker is not None or self.name == GUESS


def ask(
    *,
    prompts: str | Path | PromptSet = "tissue",
    biomarker: str | None = None,
    guess_biomarker: bool = False,
) -> list[Question]:
    """The questions for the tissue type and, where asked for, the staining of a biomarker, and the biomarker.

    prompts          prompt set of the first question: a name, a file, or the set itself
    biomarker        a biomarker (any spelling), whose staining is the second question
    guess_biomarker  whether to ask which biomarker is stained
    Raises ConfigError for an unknown prompt set, for one of fewer than two classes, and for one with a
    placeholder without `biomarker`; TaxonomyError for an unknown biomarker.
    """
    name = None if biomarker is None else taxonomy.biomarker(biomarker)
    chosen = prompts if isinstance(prompts, PromptSet) else _load(prompts)
    if len(chosen.classes) < 2:
        what = f"the prompt set '{chosen.name}' has fewer than two classes to choose from"
        raise ConfigError(what, where=str(prompts), key="--prompts", fix="add a class")
    questions = [Question(TISSUE, "tissue type", _filled(chosen, name))]
    if name is not None:
        staining = _filled(_load(_MEASURED.get(name, _GENERIC)), name)
        questions.append(Question(STAINING, f"{name} staining", staining, name))
    if guess_biomarker:
        questions.append(Question(GUESS, "biomarker (a guess)", PromptSet.load("biomarker")))
    return questions


def _load(prompts: str | Path) -> PromptSet:
    """A prompt set that may have the placeholder."""
    return PromptSet.load(prompts, placeholders=[_PLACEHOLDER])


def _filled(prompts: PromptSet, biomarker: str | None) -> PromptSet:
    """The prompts with the name of the biomarker in place of the placeholder, if they have one."""
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
