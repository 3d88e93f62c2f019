"""What a training configuration accepts, and which options are part of the identity of a run."""

from __future__ import annotations

import pytest

from his2lip import resources
from his2lip.config import dump_yaml, load, validate
from his2lip.errors import ConfigError
from his2lip.training.config import TrainConfig

DATA = {"data": {"shards": "somewhere"}}


def test_example_configuration_loads_and_survives_a_round_trip(tmp_path) -> None:
    config = load(TrainConfig, resources.find("train/train_tiny.yaml"))
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert load(TrainConfig, tmp_path / "again.yaml") == config


def test_papers_hyper_parameters_are_the_defaults() -> None:
    optim = validate(TrainConfig, DATA).optim
    assert (optim.lr, optim.weight_decay, optim.warmup, optim.grad_clip) == (2e-5, 0.01, 0.01, 1.0)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optim.lrr=1", "optim.lrr"),
        ("optim.lr=-1", "optim.lr"),
        ("data.batch_size=30", "data.batch_size"),
        ("workers.num=3", "workers.num"),
        ("loss.weights={image_text: 0, image_image: 0, text_text: 0}", "loss.weights"),
        ("loss.weights.text_text=.inf", "loss.weights.text_text"),
        ("loss.similarity={tissue: 0, pair: 0}", "loss.similarity"),
        ("loss.kappa=-1", "loss.kappa"),
        ("name=a/b", "name"),
        ("optim.epochs=many", "optim.epochs"),
        ("finetune.freeze=both", "finetune.freeze"),
        ("finetune.lora={rank: 0}", "finetune.lora.rank"),
        ("finetune.lora={alpha: 0}", "finetune.lora.alpha"),
        ("finetune.layer_decay=1.5", "finetune.layer_decay"),
        ("model.image_size=0", "model.image_size"),
        ("optim.betas=[0.9, 1]", "optim.betas.1"),
        ("loss={terms: text_only, weights: {image_text: 0, text_text: 0}}", "loss.weights"),
        ("data.augment={turn: true}", "data.augment.turn"),
        ("data={split: train}", "data.shards"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_its_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(TrainConfig, None, ["data.shards=somewhere", override])
    assert refused.value.key == key


def test_one_hot_targets_need_no_similarity() -> None:
    load(TrainConfig, None, ["data.shards=s", "loss={terms: hard, similarity: {tissue: 0, pair: 0}}"])


@pytest.mark.parametrize(("frozen", "term"), [("image", "image_image"), ("text", "text_text")])
def test_a_frozen_tower_needs_a_term_that_trains_the_other(frozen: str, term: str) -> None:
    weights = {"image_text": 0, "image_image": 0, "text_text": 0, term: 1}
    overrides = {"data.shards": "s", "finetune.freeze": frozen, "loss.weights": weights}
    with pytest.raises(ConfigError) as refused:
        load(TrainConfig, None, overrides)
    assert refused.value.key == "finetune.freeze"
    load(TrainConfig, None, overrides | {"loss.weights.image_text": 1})


def test_macro_f1_needs_a_select_split() -> None:
    with pytest.raises(ConfigError) as refused:
        load(TrainConfig, None, ["data.shards=s", "data.select=null", "checkpoint.select_by=macro_f1"])
    assert refused.value.key == "data.select"


def test_captions_that_nothing_would_search_are_not_left_out() -> None:
    with pytest.raises(ConfigError) as refused:
        load(TrainConfig, None, ["data.shards=s", "data.select=null", "data.select_captions=0.2"])
    assert refused.value.key == "data.select_captions"


@pytest.mark.parametrize(
    "override",
    ["name=b", "storage=elsewhere", "workers.num=2", "log_every=1", "checkpoint.every_steps=7",
     "checkpoint.every_minutes=1", "workers.max_preemption_failures=3",
     "data.loader=local", "data.shards=moved", "data.decode_threads=7",
     "finetune.gradient_checkpointing=true"],
)  # fmt: skip
def test_options_of_place_and_speed_do_not_change_the_identity_of_a_run(override: str) -> None:
    base = validate(TrainConfig, DATA)
    assert load(TrainConfig, None, ["data.shards=somewhere", override]).identity() == base.identity()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "optim.lr=1e-3", "loss.tau=0.5", "data.batch_size=128", "data.lanes=4", "data.augment=false",
     "model.backbone=clip", "checkpoint.select_by=macro_f1", "optim.micro_batch=8", "data.select=null",
     "finetune.lora={}", "finetune.freeze=text", "finetune.layer_decay=0.9", "model.image_size=336",
     "model.compile=true"],
)  # fmt: skip
def test_options_that_change_the_weights_change_the_identity_of_a_run(override: str) -> None:
    base = validate(TrainConfig, DATA)
    assert load(TrainConfig, None, ["data.shards=somewhere", override]).identity() != base.identity()


def test_a_model_that_needs_its_authors_package_cannot_be_trained() -> None:
    from his2lip.training.run_inputs import open_data

    with pytest.raises(ConfigError) as refused:
        open_data(load(TrainConfig, None, ["data.shards=s", "model.backbone=musk"]))
    assert refused.value.key == "model.backbone"
