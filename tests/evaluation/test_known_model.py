"""A model whose features are cached is loaded only where something new is to be encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from his2lip.errors import ModelError
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.known_model import KnownModel, ModelFacts, facts_key, read_facts, write_facts
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.interpolation import blend
from his2lip.models.load import load_model


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return load_model("tiny", seed=5)


def test_its_keys_are_those_of_the_loaded_model_and_it_encodes_as_that_does(
    model: DualEncoder, tmp_path: Path
) -> None:
    key = facts_key("some weights")
    assert read_facts(str(tmp_path), key) is None
    write_facts(str(tmp_path), key, ModelFacts.of(model))
    facts = read_facts(str(tmp_path), key)
    assert facts == ModelFacts.of(model)
    loads: list[int] = []

    def load() -> DualEncoder:
        loads.append(1)
        return model

    known = KnownModel(facts, "cpu", load)
    for preprocessing in ("native", "released"):
        assert (
            ModelEncoder(known, preprocessing=preprocessing).key
            == ModelEncoder(model, preprocessing=preprocessing).key
        )
    sentences = SentenceEncoder(known)
    assert sentences.key == SentenceEncoder(model).key
    assert not loads
    for _ in range(2):
        np.testing.assert_array_equal(sentences.encode(["tumour"]), SentenceEncoder(model).encode(["tumour"]))
    assert len(loads) == 1


def test_damaged_facts_are_not_used_and_those_of_other_weights_are_refused(
    model: DualEncoder, tmp_path: Path
) -> None:
    key = facts_key(["weights", 1])
    write_facts(str(tmp_path), key, ModelFacts.of(model))
    file = tmp_path / "models" / f"{key}.json"
    whole = file.read_text()
    file.write_text(whole.replace(f'"dim": {model.dim}', f'"dim": {model.dim + 1}'))
    assert read_facts(str(tmp_path), key) is None
    file.write_text(whole)
    facts = read_facts(str(tmp_path), key)
    assert facts is not None
    with pytest.raises(ModelError) as refused:
        SentenceEncoder(KnownModel(facts, "cpu", lambda: load_model("tiny", seed=6))).encode(["x"])
    assert refused.value.key == "models"


def test_a_checkpoint_of_other_weights_is_refused_and_a_blend_counts_by_its_own(
    model: DualEncoder, tmp_path: Path
) -> None:
    own, other = (
        load_model(save_checkpoint(tmp_path / name, load_model("tiny", seed=seed), meta={}))
        for name, seed in (("own", 5), ("other", 6))
    )
    facts = ModelFacts.of(model)
    assert KnownModel(facts, "cpu", lambda: own).loaded is own
    with pytest.raises(ModelError):
        _ = KnownModel(facts, "cpu", lambda: other).loaded
    with pytest.raises(ModelError):
        _ = KnownModel(facts, "cpu", lambda: blend(other, own, alpha=0.5)).loaded
