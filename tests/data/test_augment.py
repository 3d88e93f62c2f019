"""Crops, stain jitter and caption dropout: reproducible, within their bounds, and DAB stays brown."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stream_data import stream, write_patches
from torchvision.transforms.functional import adjust_hue

from his2lip.config import Config, validate
from his2lip.data.captions.bank import CaptionBank, Subject
from his2lip.data.images.codec import encode_png
from his2lip.data.images.stain_vectors import DAB, EOSIN, HAEMATOXYLIN
from his2lip.data.stream.augment import (
    PRESETS,
    Augment,
    Augmentation,
    Change,
    Jitter,
    class_caption,
    draw_turn,
    with_class_captions,
)
from his2lip.data.stream.decode import decode_into
from his2lip.errors import ConfigError

STRONGEST = Augment(stain=0.1)
KEYS = [f"set/{i}" for i in range(200)]


def jitters(augment: Augment) -> list[Jitter]:
    drawn = [augment.draw(0, 0, key).jitter for key in KEYS]
    return [jitter for jitter in drawn if jitter is not None]


def hue(pixels: np.ndarray) -> float:
    """The hue of the mean colour in degrees: 0 is red, 20 to 35 the brown of DAB, 240 blue."""
    return 360 * colorsys.rgb_to_hsv(*pixels.reshape(-1, 3).mean(0) / 255)[0]


def turned(before: float, after: float) -> float:
    """The smaller angle between two hues, in degrees."""
    return abs((after - before + 180) % 360 - 180)


_HED = np.array([HAEMATOXYLIN, EOSIN, DAB])
_HED /= np.linalg.norm(_HED, axis=1, keepdims=True)


def stained(amounts: tuple[float, float, float]) -> np.ndarray:
    """A uniform patch with these natural optical densities of haematoxylin, eosin and DAB."""
    return np.full((8, 8, 3), 255 * np.exp(-np.array(amounts) @ _HED), dtype=np.float32).round().astype("u1")


def real_dab(image: np.ndarray) -> np.ndarray:
    """4,096 pixels of real tissue in which DAB is most of the stain."""
    amounts = -np.log(image.clip(1) / 255.0) @ np.linalg.inv(_HED)
    brown = image[(amounts[..., 2] > 1) & (amounts[..., 0] < 0.5 * amounts[..., 2])]
    return np.ascontiguousarray(brown[:4096].reshape(64, 64, 3))


@pytest.mark.parametrize(("augment", "bound"), [(PRESETS["ihc"], 8), (STRONGEST, 15)])
def test_dab_stays_brown(real_ihc: np.ndarray, augment: Augment, bound: float) -> None:
    for patch in (real_dab(real_ihc), stained((0, 0, 1.2)), stained((0, 0, 2.4))):
        before = hue(patch)
        assert 10 < before < 40
        assert max(turned(before, hue(jitter(patch))) for jitter in jitters(augment)) < bound


def test_the_hue_jitter_of_natural_images_makes_dab_blue(real_ihc: np.ndarray) -> None:
    """Shows that the test above can fail."""
    patch = real_dab(real_ihc)
    shifted = np.asarray(adjust_hue(Image.fromarray(patch), 0.5))
    assert turned(240, hue(shifted)) < 60


def test_jitter_changes_the_amount_of_each_stain_by_its_own_number() -> None:
    numbers = np.array([0.5, 0.5, 1.0, 0.5, 0.5, 0.5])  # in the middle of the range, except for DAB
    after = Jitter.of(0.1, numbers)(stained((0.5, 0.2, 1.0)))
    amounts = -np.log(after[0, 0] / 255.0) @ np.linalg.inv(_HED)
    np.testing.assert_allclose(amounts, [0.5, 0.2, 1.1], atol=0.02)
    tint = Jitter.of(0.1, np.array([0.5, 0.5, 0.5, 1.0, 0.5, 0.5]))(np.full((2, 2, 3), 255, dtype=np.uint8))
    np.testing.assert_allclose(-np.log(tint[0, 0] / 255.0) @ np.linalg.inv(_HED), [0.1, 0, 0], atol=0.01)


def test_jitter_in_the_middle_of_its_range_does_not_change_pixels(real_ihc: np.ndarray) -> None:
    same = Jitter.of(0.1, np.full(6, 0.5))(real_ihc)
    assert np.abs(same.astype(int) - real_ihc).max() <= 1


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(0, 1000), st.text(max_size=40), st.floats(0.1, 1))
def test_a_crop_is_inside_the_image_with_its_aspect_ratio_and_at_least_the_given_area(
    seed: int, epoch: int, key: str, least: float
) -> None:
    augment = Augment(crop=least)
    change = augment.draw(seed, epoch, key)
    assert change == augment.draw(seed, epoch, key)
    assert change.turn == draw_turn(seed, epoch, key)
    if least < 1:
        left, top, right, bottom = change.box or (0, 0, 0, 0)
        assert 0 <= left < right <= 1 + 1e-9
        assert 0 <= top < bottom <= 1 + 1e-9
        assert right - left == pytest.approx(bottom - top)
        assert (right - left) ** 2 >= least - 1e-9


def test_the_crop_is_done_by_pillow_before_the_jitter_and_the_turn(real_ihc: np.ndarray) -> None:
    change = Change(3, (0.25, 0.1, 0.75, 0.6), Jitter.of(0.1, np.linspace(0, 0.9, 6)))
    out = np.empty((64, 64, 3), dtype=np.uint8)
    decode_into(memoryview(encode_png(real_ihc)), out, change=change, interpolation="bilinear")
    box = (128.0, 51.2, 384.0, 307.2)
    cropped = Image.fromarray(real_ihc).resize((64, 64), Image.Resampling.BILINEAR, box=box)
    assert change.jitter is not None
    np.testing.assert_array_equal(out, change.jitter(np.asarray(cropped))[::-1, ::-1])


def test_a_stream_that_starts_at_a_later_step_gives_the_same_augmented_pairs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    uri = write_patches(tmp_path_factory.mktemp("shards") / "set", patches=64)
    options = {"augment": Augment(crop=0.5, stain=0.1), "caption_dropout": 0.5, "stop_step": 6}
    with stream(uri, **options) as whole, stream(uri, **options, start_step=3) as later:
        for ours, theirs in zip(list(whole)[3:], later, strict=True):
            assert ours.captions == theirs.captions
            assert torch.equal(ours.images, theirs.images)
    with stream(uri, stop_step=6) as plain, stream(uri, **options) as augmented:
        first, second = next(iter(plain)), next(iter(augmented))
        assert not torch.equal(first.images, second.images)
        changed = [a != b for a, b in zip(first.captions, second.captions, strict=True)]
        assert 0 < sum(changed) < len(changed)


def test_caption_dropout_replaces_its_share_of_captions_reproducibly() -> None:
    bank = CaptionBank.templates()
    draw = with_class_captions(bank.draw, 0.3)
    said = [draw(0, 0, key, Subject("Necrosis", "CD3")) for key in KEYS]
    assert said == [draw(0, 0, key, Subject("Necrosis", "CD3")) for key in KEYS]
    dropped = [caption == class_caption("Necrosis", "CD3") for caption in said]
    assert 40 <= sum(dropped) <= 80
    assert dropped != [draw(0, 1, key, Subject("Necrosis", "CD3")) == "necrosis, CD3" for key in KEYS]
    kept = [caption for caption, gone in zip(said, dropped, strict=True) if not gone]
    plain = [bank.draw(0, 0, key, Subject("Necrosis", "CD3")) for key in KEYS]
    assert kept == [caption for caption, gone in zip(plain, dropped, strict=True) if not gone]
    assert with_class_captions(bank.draw, 0.0) == bank.draw


def test_class_captions_name_the_classes_that_are_known() -> None:
    assert class_caption("Tumor", "SMA") == "tumour tissue, smooth muscle actin"
    assert class_caption("Tumor", None) == "tumour tissue"
    assert class_caption(None, None) == "a tissue section"
    assert class_caption("Tumor", "SMA", "weak", "polyp").endswith("actin, weak staining, polyp")


class Section(Config):
    augment: Augmentation = Augment()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (True, Augment()),
        (False, Augment(turns=False)),
        ("ihc", Augment(crop=0.6, stain=0.05)),
        ({"crop": 0.8}, Augment(crop=0.8)),
    ],
)
def test_presets_and_mappings_give_the_same_options(written: object, meant: Augment) -> None:
    section = validate(Section, {"augment": written})
    assert section.augment == meant
    assert validate(Section, section.model_dump(mode="json")) == section


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ("imagenet", "augment"),
        ({"stain": 0.5}, "augment.stain"),
        ({"hue": 0.1}, "augment.hue"),
        ({"crop": 0}, "augment.crop"),
        (3, "augment"),
    ],
)
def test_other_augmentations_are_refused_by_key(wrong: object, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(Section, {"augment": wrong})
    assert refused.value.key == key
