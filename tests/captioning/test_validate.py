"""Validation of rewordings: planted flips are caught, true rewordings pass, on independent sources."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from hashlib import blake2b
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as t_distribution

from his2lip import taxonomy
from his2lip.captioning.claims import claims
from his2lip.captioning.fields import prefilled, sentence
from his2lip.captioning.validate import Validator
from his2lip.data.captions import PLACES, STAINS
from his2lip.data.captions import templates as t
from his2lip.data.captions.corpus import _families
from his2lip.data.captions.frames import framed
from his2lip.data.shards import STAININGS
from his2lip.errors import TaxonomyError
from his2lip.models import clip_tokenizer

TOKENIZER = clip_tokenizer()
# Written freely: seeds, true rewordings, flips of (kind, sentence). The first file is older than the word
# lists of the validator, the second was written against the finished ones.
FILES = ("written_pairs.json", "fresh_pairs.json")
SITES = ("nuclei", "membranes", "cytoplasm")


class NoLimit:
    """Texts of any length: what is measured is the meaning."""

    context_length = 0

    def too_long(self, captions: Iterable[str]) -> list[str]:
        return []


def share(name: str, hits: int, n: int) -> float:
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    print(f"{name}: {hits} of {n} = {hits / n:.3f} (95 % interval {interval.low:.3f} to {interval.high:.3f})")
    return hits / n


@pytest.mark.parametrize("file", FILES)
def test_flips_that_were_written_freely_are_caught(file: str) -> None:
    """22 seeds with 66 true rewordings and 110 flips, and 10 seeds with 50 and 50."""
    caught, refused = [], []
    for pair in json.loads(Path(__file__).with_name(file).read_bytes()):
        about = (pair["seed"], pair["tissue"], pair["biomarker"], TOKENIZER)
        caught += [Validator(*about).refusal(text) for _, text in pair["flips"]]
        validator = Validator(*about)
        refused += [validator.refusal(text) for text in pair["true"]]
    assert share(f"{file}: flips caught", sum(r is not None for r in caught), len(caught)) >= 0.95
    assert share(f"{file}: rewordings refused", sum(r is not None for r in refused), len(refused)) <= 0.05


def test_flips_that_were_written_to_pass_are_mostly_caught() -> None:
    """56 flips by a reader of the word lists: double denials, rare verbs, artefacts, what lies beside."""
    caught, refused = [], []
    for pair in json.loads(Path(__file__).with_name("sly_pairs.json").read_bytes()):
        about = (pair["seed"], pair["tissue"], pair["biomarker"], NoLimit())
        caught += [Validator(*about).refusal(text) for _, text in pair["flips"]]
        refused += [Validator(*about).refusal(text) for text in pair["true"]]
    assert share("sly_pairs.json: flips caught", sum(r is not None for r in caught), len(caught)) >= 0.9
    assert refused == [None] * 7


def generated() -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
    """(tissue type, biomarker, seed, sentence): true rewordings and flips made of the caption templates.

    A true rewording says the same finding in another frame with another name of the place. A flip has the
    finding of the opposite band, of another stained part, or another place in the same frame.
    """
    true, flips = [], []
    for biomarker, stain in STAINS.items():
        for tissue in ("Alveoli", "Immune cells", "Stroma", "Tumor"):
            if not stain.has_carriers(tissue) or stain.name == "HER2":
                continue
            cells, site = stain.carriers(tissue)
            for band, other in (("negative", "strong"), ("strong", "negative"), ("weak", "negative")):
                for i, clause in enumerate(t.CLAUSES[band]):
                    finding = clause.format(cells=cells, site=site)
                    seed, *rest = framed([finding], PLACES[tissue], stain.name)
                    true += [(tissue, biomarker, seed, text) for text in rest]
                    opposite = t.CLAUSES[other][i % len(t.CLAUSES[other])].format(cells=cells, site=site)
                    flips += [
                        (tissue, biomarker, seed, text)
                        for text in framed([opposite], PLACES[tissue], stain.name)[:2]
                    ]
                    if site in SITES and "{site}" in clause:
                        moved = clause.format(cells=cells, site=next(s for s in SITES if s != site))
                        flips += [(tissue, biomarker, seed, framed([moved], PLACES[tissue], stain.name)[0])]
                    elsewhere = "Necrosis" if tissue != "Necrosis" else "Tumor"
                    flips += [(tissue, biomarker, seed, framed([finding], PLACES[elsewhere], stain.name)[1])]
    return true, flips


def test_generated_flips_are_caught_and_generated_rewordings_pass() -> None:
    draw = random.Random(0)
    true, flips = (draw.sample(rows, 300) for rows in generated())
    refused = [Validator(seed, ti, b, NoLimit()).refusal(text) for ti, b, seed, text in true]
    caught = [Validator(seed, ti, b, NoLimit()).refusal(text) for ti, b, seed, text in flips]
    assert share("generated flips caught", sum(r is not None for r in caught), len(caught)) >= 0.95
    assert share("generated rewordings refused", sum(r is not None for r in refused), len(refused)) <= 0.05


# Mechanical flips of a rewording of the corpus: the words that carry the claim are denied, or exchanged. The
# first are for sentences that assert staining only, the second for those that deny it only.
DENY = (
    (r"\bpositive\b", "negative"),
    (r"\bpositivity\b", "negativity"),
    (r"\bnuclear (?=staining|positiv)", "membranous "),
    (r"\bmembranous (?=staining|positiv)", "nuclear "),
    (r"\btumou?r (?=tissue|cells?)", "necrotic "),
    (r"\bstromal? (?=tissue|cells?)", "alveolar "),
    (r"\b(?:exhibit|show|display|express|demonstrate)s?\b(?=.*(?:staining|positiv))", "lacks"),
    (r"\bstaining (?=is|was|in\b)", "absence of staining "),
)
ASSERT = (
    (r"\bnegative\b", "positive"),
    (r"\b(?:absence|lack) of\b", "presence of"),
    (r"\bno\b", "clear"),
    (r"\bnecrotic (?=tissue|cells?)", "tumour "),
)


# Hardly a rewording of the corpus asserts staining of one part and denies it of another. So a denial of a
# part that it does not name is added, with `in a patchy pattern`, and the two parts are exchanged.
ADDED = (
    (
        "no {} staining is seen",
        {"nuclear": "nuclear", "membranous": "membranous", "cytoplasmic": "cytoplasmic"},
    ),
    ("the {} are negative", {"nuclei": "nuclear", "membranes": "membranous"}),
    ("the {} is negative", {"tumor": "Tumor", "stroma": "Stroma", "necrosis": "Necrosis"}),
)


def exchanges(text: str, parts: dict[str, frozenset[str]], named: frozenset[str]) -> list[tuple[str, str]]:
    """(seed, flip): the sentence with each denial that fits, and the same with the two parts exchanged."""
    pairs = []
    for denial, names in ADDED:
        for one, other in permutations(names, 2):
            stands = re.search(rf"\b{one}\b", text, re.IGNORECASE)
            if stands and parts.get(names[one]) == {"stained"} and names[other] not in named:
                whole = f"{text.rstrip('. ')}, in a patchy pattern, while {denial.format(other)}."
                to = {one: other, other: one}
                flip = re.sub(
                    rf"\b(?:{one}|{other})\b", lambda m, to=to: to[m[0].lower()], whole, flags=re.IGNORECASE
                )
                pairs.append((whole, flip))
    return pairs


Row = tuple[int, str, str, str, str]  # family, tissue type, biomarker, seed, rewording


def corpus_rows(shared: Path) -> list[Row]:
    """Rewordings of the released corpus, without list numbers, of seeds that claim something."""
    root = shared / "captions/AugmentedCaptions"
    if not root.is_dir():
        pytest.skip("the released corpus is not beside this checkout")
    blocks: dict[tuple[str, str], list[list[str]]] = {}
    for path in sorted(root.glob("*/*.txt")):
        try:
            pair = taxonomy.tissue(path.parent.name), taxonomy.biomarker(path.stem)
        except TaxonomyError:
            continue
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8-sig")):
            if lines := [" ".join(line.split()) for line in block.splitlines() if line.strip()]:
                blocks.setdefault(pair, []).append(lines)
    captions = [(pair, text) for pair, own in blocks.items() for block in own for text in block]
    families = iter(_families(blocks, captions))
    rows = []
    for (tissue, biomarker), own in blocks.items():
        for seed, *rest in own:
            numbers = [next(families) for _ in (seed, *rest)]
            told = claims(seed, glass=tissue == "Background")
            if told.stained or told.unstained:
                texts = [re.sub(r"^\d+[.)]\s+", "", text) for text in rest]
                rows += [(numbers[0], tissue, biomarker, seed, text) for text in texts]
    return rows


def share_by_family(name: str, hits: list[tuple[int, bool]]) -> tuple[float, float, float]:
    """A share with its 95 % interval by family: delete-one jackknife with t(families - 1)."""
    by: dict[int, list[int]] = {}
    for family, hit in hits:
        count = by.setdefault(family, [0, 0])
        count[0] += hit
        count[1] += 1
    counts = np.array(list(by.values()), float)
    (k, n), g = counts.sum(axis=0), len(counts)
    without = (k - counts[:, 0]) / (n - counts[:, 1])
    half = t_distribution.ppf(0.975, g - 1) * np.sqrt((g - 1) / g * ((without - without.mean()) ** 2).sum())
    print(
        f"{name}: {k:.0f} of {n:.0f} in {g} families = {k / n:.3f} ({k / n - half:.3f} to {k / n + half:.3f})"
    )
    return k / n, k / n - half, k / n + half


@pytest.mark.parametrize("count", [600, pytest.param(None, marks=pytest.mark.slow)])
def test_rewordings_of_the_released_corpus(shared: Path, count: int | None) -> None:
    """Rewordings of seeds that claim something. Each block of the corpus is a seed with its rewordings.

    They were not made under the validator's rules. What it refuses was read: `judged_refusals.json` has the
    digest of each such line under what it is: a true rewording, doubtful, or not one, since it adds a grade,
    loses the tissue type, repeats the seed... Doubtful lines, and those that nobody read, count as true ones.
    """
    judged = json.loads(Path(__file__).with_name("judged_refusals.json").read_bytes())
    draw = random.Random(0)
    rows = corpus_rows(shared)
    refused, flips, exchanged = [], [], []
    for family, *about, text in draw.sample(rows, count or len(rows)):
        tissue, biomarker, seed = about
        if Validator(seed, tissue, biomarker, NoLimit()).refusal(text) is not None:
            key = blake2b("\n".join((*about, text)).encode(), digest_size=5).hexdigest()
            if key not in judged["not"]:
                refused.append((family, True))
            continue
        refused.append((family, False))
        told = claims(text, glass=tissue == "Background")
        if told.stained and not told.unstained:
            pairs = exchanges(text, told.parts, told.named)
            exchanged += [(family, tissue, biomarker, whole, flip) for whole, flip in pairs]
        fitting = [swap for swap in (ASSERT if told.unstained else DENY) if re.search(swap[0], text)]
        if fitting and not (told.stained and told.unstained):
            flips.append((family, tissue, biomarker, seed, re.sub(*draw.choice(fitting), text)))
    caught, caught_exchanged = (
        [(f, Validator(seed, t, b, NoLimit()).refusal(text) is not None) for f, t, b, seed, text in rows]
        for rows in (flips, exchanged)
    )
    share_caught, least, _ = share_by_family("corpus flips caught", caught)
    share_exchanged, _, _ = share_by_family("exchanges of two parts caught", caught_exchanged)
    share_refused, _, most = share_by_family("true rewordings of the corpus refused", refused)
    assert len(flips) > 0.6 * (count or len(rows))
    assert share_caught >= 0.95
    assert share_exchanged >= 0.95
    assert share_refused <= 0.05
    if count is None:
        assert least >= 0.95
        assert most <= 0.05


# Faults of earlier rules, in sentences of our own: (seed, rewording that says the same, one that does not).
@pytest.mark.parametrize(
    ("tissue", "biomarker", "seed", "true", "flip"),
    [
        (
            "Tumor",
            "Ki67",
            "Tumour tissue stained for Ki67: no nuclear, membranous or cytoplasmic staining is seen.",
            "This tumour tissue has no Ki67 reactivity of nuclei, membranes, or cytoplasm.",
            "This tumour tissue has nuclear Ki67 staining but no membranous or cytoplasmic staining.",
        ),
        (
            "Tumor",
            "CD34",
            "The tumour is partly positive and partly negative for CD34.",
            "Within this tumour, CD34 staining is patchy.",
            "Within this tumour, CD34 staining is widespread.",
        ),
        (
            "Stroma",
            "P53",
            "The stroma is predominantly negative for p53, and a few scattered nuclei are weakly positive.",
            "Only a few scattered nuclei of the stroma are weakly p53-positive.",
            "The stroma is predominantly positive for p53, and a few scattered nuclei are weakly positive.",
        ),
        (
            "Immune cells",
            "CD3",
            "A cluster of immune cells is positively stained for CD3, as T cells are.",
            "T cells stained for CD3 form a cluster of immune cells.",
            "T cells form a cluster of immune cells, and CD3 stains none of them.",
        ),
        (
            "Background",
            "CD3",
            "Slide background without any tissue in a CD3 preparation; nothing is stained.",
            "The CD3 preparation shows an empty background with no tissue structures.",
            "The CD3 preparation shows a brown background.",
        ),
        (
            "Necrosis",
            "CD20",
            "Necrosis is negative for CD20, with little to no expression.",
            "A negative CD20 stain in necrosis suggests minimal expression.",
            "A positive CD20 stain in necrosis suggests that expression is not minimal.",
        ),
        (
            "Stroma",
            "CD68",
            "In the stroma, not all macrophages are stained for CD68 in brown.",
            "Some macrophages of the stroma show brown CD68 staining, and some lack it.",
            "All macrophages of the stroma show brown CD68 staining.",
        ),
        (
            "Stroma",
            "CD68",
            "Scattered cells of the stroma show brown CD68 staining, while the background is colourless.",
            "The stroma has scattered brown CD68-stained cells, the background remaining colourless.",
            "The stroma has scattered brown CD68-stained cells, with the background remaining brown.",
        ),
        (
            "Stroma",
            "CD34",
            "CD34 staining is seen mainly in vessels of the stroma.",
            "In the stroma, CD34 staining is seen in vessels mainly.",
            "Many vessels of the stroma show CD34 staining.",
        ),
    ],
)
def test_what_one_sentence_says_in_other_words_passes(
    tissue: str, biomarker: str, seed: str, true: str, flip: str
) -> None:
    assert Validator(seed, tissue, biomarker, TOKENIZER).refusal(true) is None
    assert Validator(seed, tissue, biomarker, TOKENIZER).refusal(flip) is not None


# What is stained exchanged with what is not, in seeds that also say `patchy`, `partial` or `mostly negative`:
# such a word excuses nothing that is said of a compartment or of another tissue.
@pytest.mark.parametrize(
    ("tissue", "biomarker", "seed", "flip"),
    [
        (
            "Tumor",
            "HER2",
            "In this tumour, the membranes are patchy positive and the nuclei remain blue on HER2 staining.",
            "In this tumour, the nuclei are patchy positive and the membranes remain blue on HER2 staining.",
        ),
        (
            "Tumor",
            "HER2",
            "In this tumour, membranes are stained for HER2, unlike nuclei.",
            "In this tumour, nuclei are stained for HER2, unlike membranes.",
        ),
        (
            "Tumor",
            "HER2",
            "The tumour cells show patchy membranous HER2 staining; nuclei are negative.",
            "The tumour cells show patchy nuclear HER2 staining; membranes are negative.",
        ),
        (
            "Tumor",
            "HER2",
            "The tumour cells show partial membranous HER2 staining and no cytoplasmic staining.",
            "The tumour cells show partial cytoplasmic HER2 staining and no membranous staining.",
        ),
        (
            "Tumor",
            "HER2",
            "The tumour shows partial membranous and no cytoplasmic staining for HER2.",
            "The tumour shows partial cytoplasmic and no membranous staining for HER2.",
        ),
        (
            "Tumor",
            "FHL2",
            "The tumour shows weak, patchy cytoplasmic staining for FHL2; all nuclei are negative.",
            "The tumour is stained for FHL2: its cytoplasm is negative, and its nuclei are weakly positive.",
        ),
        (
            "Tumor",
            "CD3",
            "The tumour is largely negative for CD3, with few positive T cells in the stroma.",
            "The stroma is largely negative for CD3, with few positive T cells in the tumour.",
        ),
        (
            "Tumor",
            "CD3",
            "A few T cells are positive for CD3, and the tumour cells are mainly negative.",
            "A few tumour cells are positive for CD3.",
        ),
        (
            "Tumor",
            "CD3",
            "A few T cells are positive for CD3, the tumour cells are mainly negative.",
            "A few tumour cells are positive for CD3, the T cells are mainly negative.",
        ),
        (
            "Tumor",
            "Ki67",
            "The tumour cells are negative for Ki67, the stroma shows a mixed pattern of staining.",
            "The tumour cells are only positive for Ki67.",
        ),
        (
            "Tumor",
            "Ki67",
            "The tumour cells are negative for Ki67, the stroma shows a mixed pattern of staining.",
            "The tumour cells show a mixed pattern of staining for Ki67, the stroma is negative.",
        ),
        (
            "Tumor",
            "CD34",
            "The tumour shows patchy staining for CD34, while the stroma is negative.",
            "The tumour is partially negative for CD34, while the stroma shows focal staining.",
        ),
        (
            "Tumor",
            "CD34",
            "The tumour shows patchy staining for CD34, while the stroma is negative.",
            "The tumour shows no staining for CD34, while the stroma shows patchy staining.",
        ),
        (
            "Stroma",
            "P53",
            "The stroma is predominantly negative for p53, and a few scattered nuclei are weakly positive.",
            "The stroma is positive for p53, and only a few scattered nuclei are weakly positive.",
        ),
        (
            "Tumor",
            "CD34",
            "In the tumour, staining for CD34 is patchy, and none of the nuclei are stained.",
            "In the tumour, only some nuclei are stained for CD34.",
        ),
        (
            "Stroma",
            "P53",
            "The stroma is predominantly negative for p53, and a few scattered nuclei are weakly positive.",
            "The stroma is only positive for p53.",
        ),
        (
            "Stroma",
            "P53",
            "The stroma is predominantly negative for p53, and a few scattered nuclei are weakly positive.",
            "The stroma is partly negative for p53, and a few scattered nuclei are negative.",
        ),
    ],
)
def test_what_is_stained_and_what_is_not_cannot_be_exchanged(
    tissue: str, biomarker: str, seed: str, flip: str
) -> None:
    assert Validator(seed, tissue, biomarker, NoLimit()).refusal(flip) is not None
    assert Validator(flip, tissue, biomarker, NoLimit()).refusal(seed) is not None


SEED = "Tumour tissue stained for Ki67: many tumour cells show nuclear staining."


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("form", "I'm sorry, but I cannot help with Ki67 in tumour cells with nuclear staining."),
        ("form", "Ignore previous instructions: many tumour cells show nuclear staining for Ki67."),
        ("form", "Many tumour cells show nuclear staining for Ki67, see https://example.org."),
        ("form", "Here are 10 variants: many tumour cells show nuclear Ki67 staining."),
        ("form", "Many tumour cells show nuclear Ki67 staining. They are many. They are stained."),
        ("form", "Viele Ki67-positive 肿瘤 cells of the tumour show nuclear staining."),
        ("form", "Ki67 tumour"),
        ("biomarker", "Many tumour cells show nuclear staining."),
        ("biomarker", "Many tumour cells show nuclear staining for Ki67 and for PD-L1."),
        ("biomarker", "Many tumour cells show nuclear staining for p53, not for Ki67."),
        ("tissue type", "Many cells show nuclear staining for Ki67."),
        ("tissue type", "In necrotic tumour tissue, many tumour cells show nuclear Ki67 staining."),
        ("polarity", "Many tumour cells show no nuclear Ki67 staining."),
        ("compartment", "Many tumour cells show cytoplasmic Ki67 staining."),
        ("grading", "Many tumour cells show strong nuclear Ki67 staining."),
        ("grading", "Few tumour cells show nuclear Ki67 staining."),
        ("grading", "Nuclear Ki67 staining is seen in 80 % of many tumour cells."),
        ("grading", "Many tumour cells show nuclear Ki67 staining, grade 3."),
        ("length", "Ki67 marks nuclei of many tumour cells " + "that are stained and stained " * 20),
        ("duplicate", "Tumour tissue stained for Ki67; many tumour cells show a nuclear staining."),
    ],
)
def test_a_rewording_is_refused_with_the_check_that_it_fails(check: str, text: str) -> None:
    refusal = Validator(SEED, "Tumor", "Ki67", TOKENIZER).refusal(text)
    assert refusal is not None
    assert refusal.check == check


KI67 = "Tumour tissue stained for Ki67: many tumour cells show strong, diffuse nuclear staining."
HER2 = "Tumour tissue stained for HER2: no tumour cells show membranous staining."
SHARE = "Tumour tissue stained for Ki67: about 30 % of tumour cells show moderate nuclear staining."
CD3 = "Immune cells stained for CD3: a few T cells show weak membranous staining."
COMPLETE = "Tumour tissue stained for HER2: many tumour cells show strong, complete membranous staining."
SEEDS = {
    KI67: ("Tumor", "Ki67"),
    HER2: ("Tumor", "HER2"),
    SHARE: ("Tumor", "Ki67"),
    CD3: ("Immune cells", "CD3"),
    COMPLETE: ("Tumor", "HER2"),
}


def test_a_comma_between_adjectives_leaves_the_cells_with_their_staining() -> None:
    """The sentences of `fields.sentence` have it where a pattern is stated."""
    found = claims(KI67).parts
    assert {name for name, signs in found.items() if signs == {"stained"}} == {
        "nuclear",
        "Tumor",
        "tumour cells",
    }


@pytest.mark.parametrize(
    ("check", "seed", "text"),
    [
        ("tissue type", KI67, "Many fibroblasts in the Ki67-stained tumour show strong nuclear staining."),
        ("tissue type", KI67, "Many neutrophils in the tumour show strong nuclear Ki67 staining."),
        ("biomarker", KI67, "Many tumour cells show nuclear staining for Ki67 and c-MYC."),
        ("polarity", KI67, "The tumour does not show strong, diffuse nuclear staining for Ki67."),
        ("polarity", KI67, "Nuclear Ki67 staining isn’t seen in many tumour cells."),
        ("polarity", KI67, "Nuclear Ki67 staining was ruled out in many tumour cells."),
        ("polarity", KI67, "Nuclear Ki67 staining vanished from many tumour cells."),
        ("polarity", HER2, "There is no absence of membranous HER2 staining in tumour cells."),
        ("polarity", HER2, "Tumour cells without membranous HER2 staining are absent."),
        ("polarity", HER2, "It is not true that no tumour cells show membranous HER2 staining."),
        ("grading", KI67, "Strong, focal nuclear Ki67 staining is seen in many tumour cells."),
        ("grading", KI67, "Strong nuclear Ki67 staining is seen in ten per cent of tumour cells."),
        ("grading", KI67, "Strong nuclear Ki67 staining is seen in a tenth of tumour cells."),
        ("grading", KI67, "Strong nuclear Ki67 staining (+++) is seen in many tumour cells."),
        ("grading", KI67, "Far from strong, nuclear Ki67 staining is seen in many tumour cells."),
        ("grading", COMPLETE, "Many tumour cells show strong, incomplete membranous HER2 staining."),
        ("grading", SHARE, "Over 30 % of tumour cells show moderate nuclear Ki67 staining."),
        ("grading", SHARE, "About 30 ‰ of tumour cells show moderate nuclear Ki67 staining."),
        ("grading", SHARE, "About 30 of the tumour cells show moderate nuclear Ki67 staining."),
        ("grading", CD3, "Among immune cells, quite a few T cells show weak membranous CD3 staining."),
        ("tissue type", KI67, "Ki67 in breast tumour: many tumour cells show strong nuclear staining."),
        ("tissue type", KI67, "In this lung tumour, many tumour cells show strong nuclear Ki67 staining."),
        ("tissue type", HER2, "In this gastric tumour, no tumour cells show membranous HER2 staining."),
        ("compartment", KI67, "Many cells of this tumour show strong, diffuse nucleolar Ki67 staining."),
        ("compartment", KI67, "Many cells of this tumour show strong Ki67 staining of the Golgi apparatus."),
        ("compartment", KI67, "Strong, diffuse mitochondrial Ki67 staining marks many tumour cells."),
        ("grading", KI67, "Many tumour cells show minimal, diffuse nuclear Ki67 staining."),
        ("grading", KI67, "In many tumour cells, strong nuclear Ki67 staining is reduced."),
        ("polarity", KI67, "Strong nuclear Ki67 staining is suppressed in many tumour cells."),
        ("polarity", KI67, "Strong nuclear Ki67 staining of many tumour cells is unconvincing."),
        ("polarity", HER2, "Membranous HER2 staining of the tumour cells is not convincing."),
        ("form", KI67, "Many tumour cells show strong, diffuse nuclear staining for Κi67."),
        ("tissue type", KI67, "Many adenocarcinoma cells show strong, diffuse nuclear Ki67 staining."),
        ("tissue type", KI67, "Strong nuclear Ki67 staining marks many squamous carcinoma cells."),
        ("tissue type", KI67, "Many melanoma tumour cells show strong nuclear Ki67 staining."),
        ("tissue type", HER2, "The tumour glands show no membranous HER2 staining."),
        ("polarity", KI67, "Many aggressive tumour cells show strong, diffuse nuclear Ki67 staining."),
        ("polarity", KI67, "Many metastatic tumour cells show strong, diffuse nuclear Ki67 staining."),
        ("polarity", KI67, "Many poorly differentiated tumour cells show strong nuclear Ki67 staining."),
        ("polarity", KI67, "After chemotherapy, many tumour cells show strong nuclear Ki67 staining."),
        ("polarity", KI67, "Strong red nuclear Ki67 staining is seen in many tumour cells."),
        ("polarity", CD3, "Among immune cells, a few exhausted T cells show weak membranous CD3 staining."),
        ("polarity", HER2, "Tumour cells show no membranous HER2 staining except at one side."),
        ("polarity", HER2, "The tumour cells no longer show membranous HER2 staining."),
        ("compartment", KI67, "Secreted Ki67 stains many tumour nuclei strongly."),
        ("cells", CD3, "Among immune cells, a few T cells and NK cells show weak membranous CD3 staining."),
        ("grading", KI67, "Many tumour cells show strong, dot-like nuclear Ki67 staining."),
        ("grading", KI67, "Many tumour cells show strong, granular nuclear Ki67 staining."),
        ("grading", KI67, "Many tumour cells show strong, uneven nuclear Ki67 staining."),
        ("grading", KI67, "Each tumour cell shows strong, diffuse nuclear Ki67 staining."),
        ("grading", KI67, "The entire tumour shows strong, diffuse nuclear Ki67 staining."),
        ("grading", KI67, "A dozen tumour cells show strong, diffuse nuclear Ki67 staining."),
        ("grading", KI67, "Hundreds of tumour cells show strong, diffuse nuclear Ki67 staining."),
        ("grading", KI67, "One tumour cell shows strong, diffuse nuclear Ki67 staining."),
        ("grading", COMPLETE, "Many tumour cells show strong, nearly complete membranous HER2 staining."),
        ("grading", COMPLETE, "Many tumour cells show strong, basolateral membranous HER2 staining."),
        ("grading", HER2, "Tumour cells show no diffuse membranous HER2 staining."),
        ("grading", HER2, "Tumour cells do not show much membranous HER2 staining."),
        ("grading", CD3, "Among immune cells, eleven T cells show weak membranous CD3 staining."),
    ],
)
def test_what_the_seed_does_not_say_is_refused(check: str, seed: str, text: str) -> None:
    refused = Validator(seed, *SEEDS[seed], NoLimit()).refusal(text)
    assert refused is not None
    assert refused.check == check


@pytest.mark.parametrize(
    ("seed", "text"),
    [
        (KI67, "Strong and diffuse nuclear staining for Ki‑67 is seen in many tumour cells."),
        (KI67, "Many tumour cells have nuclei that are strongly and diffusely stained for Ki67."),
        (HER2, "Tumour cells don’t show membranous HER2 staining."),
        (CD3, "Faint membranous CD3 staining marks a few T cells among the immune cells."),
        (HER2, "Not a single tumour cell shows membranous staining for HER2."),
        (SHARE, "Moderate nuclear Ki67 staining is seen in about 30% of the tumour cells."),
        (SHARE, "Ki67 moderately stains the nuclei of about thirty per cent of the tumour cells."),
        (CD3, "A few T cells among these immune cells show weak membranous staining for CD3ε."),
        (CD3, "Membranous CD3e staining is weak, in a few T cells among these immune cells."),
        (CD3, "Minimal membranous CD3 staining marks a few T cells among these immune cells."),
        (HER2, "No convincing membranous HER2 staining of tumour cells is seen in this tumour."),
        (HER2, "The membranes of the tumour cells are uniformly negative for HER2."),
        (KI67, "Many carcinoma cells show strong, uniform nuclear Ki67 staining."),
        (COMPLETE, "Strong HER2 staining completely outlines many cells of this whole-slide tumour patch."),
    ],
)
def test_another_spelling_passes(seed: str, text: str) -> None:
    assert Validator(seed, *SEEDS[seed], NoLimit()).refusal(text) is None


def test_a_rewording_that_repeats_an_earlier_one_is_a_duplicate() -> None:
    validator = Validator(SEED, "Tumor", "Ki67", TOKENIZER)
    text = "Nuclear Ki67 staining is found in many tumour cells of this piece of tissue."
    assert validator.refusal(text) is None
    repeated = validator.refusal(text.replace("found", "seen"))
    assert repeated is not None
    assert repeated.check == "duplicate"


def test_the_drafted_sentences_validate_as_rewordings_of_themselves() -> None:
    """What draft writes is read with its own polarity, so that its rewordings can be compared with it."""
    for tissue in taxonomy.TISSUES:
        for biomarker in taxonomy.BIOMARKERS:
            for band in STAININGS:
                told = claims(
                    sentence(tissue, biomarker, prefilled(tissue, biomarker, band)),
                    glass=tissue == "Background",
                )
                assert (told.stained, told.unstained) == (band != "negative", band == "negative")
                assert told.markers == {biomarker}
