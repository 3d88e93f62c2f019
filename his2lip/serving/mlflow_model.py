"""A checkpoint as an MLflow model, which answers requests with images in base64."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from pandas import DataFrame  # MLflow's form of a request; MLflow depends on pandas

import his2lip
from his2lip.data.cards import MAX_MPP, MIN_MPP
from his2lip.data.images import decode
from his2lip.errors import ConfigError, His2lipError, ImageError, did_you_mean
from his2lip.evaluation import list_prompts
from his2lip.models import CHECKPOINT_ARTIFACT
from his2lip.serving.basis import Scale
from his2lip.serving.calibration import calibrated
from his2lip.serving.classifier import DAB_UNIT, Answer, Classifier
from his2lip.serving.loading import load_for_inference
from his2lip.serving.questions import ask

MAX_IMAGES = 64  # per request
MAX_BASE64 = 32 << 20  # characters per image, a file of 24 MB, which is more than a patch of 3000 px needs

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "image")]),
    params=ParamSchema(
        [
            ParamSpec("prompts", "string", "tissue"),  # the name of a prompt set that is part of his2lip
            ParamSpec("biomarker", "string", ""),  # adds the question for the staining of this biomarker
            ParamSpec("guess_biomarker", "boolean", False),  # adds the question which biomarker is stained
            ParamSpec("top", "integer", 3),  # number of classes returned for each question
            ParamSpec("mpp", "double", 0.0),  # microns per pixel of the images; 0: unknown
            ParamSpec("organ", "string", ""),  # the organ of the images; empty: not stated
            ParamSpec("force", "boolean", False),  # shows answers that are held back, marked
        ]
    ),
)


def model_files(checkpoint: str | Path) -> dict[str, Any]:
    """Arguments of `mlflow.pyfunc.log_model` or `save_model` that store a checkpoint as a served model.

    `checkpoint` must be a directory called `checkpoint`. MLflow copies it unchanged, and
    `load_model("models:/…")` finds it by that name in the registered model.
    """
    return {
        "python_model": str(Path(__file__).with_name("model_code.py")),
        "artifacts": {CHECKPOINT_ARTIFACT: str(checkpoint)},
        "signature": SIGNATURE,
        "pip_requirements": [f"his2lip=={his2lip.__version__}"],
    }


class ServedModel(PythonModel):
    """Answers requests with a column `image` of base64 strings. The params of the signature set options."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the checkpoint from the artifacts, without any download."""
        loaded = load_for_inference(context.artifacts[CHECKPOINT_ARTIFACT])

        @lru_cache(maxsize=32)
        def classifier(
            prompts: str, biomarker: str, guess_biomarker: bool, organ: str, force: bool
        ) -> Classifier:
            asked = ask(prompts=prompts, biomarker=biomarker or None, guess_biomarker=guess_biomarker)
            questions = calibrated(asked, loaded.model, (), carried=loaded.calibrations)
            return Classifier(
                loaded.model, questions, history=loaded.history, organ=organ or None, force=force
            )

        self._classifier = classifier

    def predict(
        self, context: PythonModelContext, model_input: DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One mapping per image: name of the question -> the fields of its answer, as `_as_json` gives them.

        Raises RefusedRequest, which the server returns as status 400 with one sentence.
        """
        options = {spec.name: spec.default for spec in SIGNATURE.params} | (params or {})
        with _one_sentence():
            images = [_decoded(text, row) for row, text in enumerate(_column(model_input))]
            _check_options(options)
            scale = _scale(options)
            classifier = self._classifier(
                options["prompts"],
                options["biomarker"],
                bool(options["guess_biomarker"]),
                options["organ"],
                bool(options["force"]),
            )
            rows = classifier.classify_batch((pixels, scale) for pixels in _pixels(images))
        return [{name: _as_json(a, int(options["top"])) for name, a in row.items()} for row in rows]


class RefusedRequest(MlflowException):
    """A request that cannot be answered. The response is one sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)
        self.sentence = sentence

    def serialize_as_json(self) -> str:
        """The body of the response. MLflow's default would put the whole request before the message."""
        return json.dumps({"error_code": self.error_code, "message": self.sentence})


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turns errors that the user can fix into RefusedRequest."""
    try:
        yield
    except His2lipError as error:
        raise RefusedRequest(str(error)) from None


def _column(model_input: DataFrame) -> list[Any]:
    """The 1 to MAX_IMAGES strings of the column `image`."""
    images = list(model_input["image"])
    if not images:
        fix = 'send {"inputs": {"image": [BASE64, …]}}'
        raise ImageError("the request has no image", key="image", fix=fix)
    if len(images) > MAX_IMAGES:
        what, fix = f"the request has {len(images)} images", f"send at most {MAX_IMAGES} at once"
        raise ImageError(what, key="image", fix=fix)
    return images


def _decoded(text: Any, row: int) -> bytes:
    """The bytes of the image file that is `text` in base64."""
    where = f"image {row}"
    if not isinstance(text, str):
        what = f"an image must be a string in base64, not {type(text).__name__}"
        raise ImageError(what, where=where, key="image")
    if len(text) > MAX_BASE64:
        what = f"the image has {len(text):,} characters of base64, more than the limit of {MAX_BASE64:,}"
        raise ImageError(what, where=where, key="image", fix="send a patch, not a slide")
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # `base64` and MIME write lines
    except (binascii.Error, ValueError):
        fix = "encode the bytes of the file in base64"
        raise ImageError("this is not base64", where=where, key="image", fix=fix) from None


def _check_options(options: dict[str, Any]) -> None:
    """Raises ConfigError for a prompt set that is not part of his2lip, or for `top` below 1.

    A prompt set that is a file is refused, because requests must not make the server read other files.
    """
    known = list_prompts()
    if options["prompts"] not in known:
        what = f"there is no prompt set '{options['prompts']}'"
        raise ConfigError(what, key="prompts", fix=did_you_mean(options["prompts"], known))
    if int(options["top"]) < 1:
        what, fix = f"top is {options['top']}", "leave it out, or set it to 1 or more"
        raise ConfigError(what, where="top", key="top", fix=fix)


def _scale(options: dict[str, Any]) -> Scale:
    """The scale of the images. Raises ConfigError for impossible microns per pixel."""
    mpp = float(options["mpp"])
    if mpp and not MIN_MPP <= mpp <= MAX_MPP:
        what, fix = f"mpp is {mpp:g}", f"set it to {MIN_MPP:g} to {MAX_MPP:g}, or to 0 where it is unknown"
        raise ConfigError(what, where="mpp", key="mpp", fix=fix)
    return Scale.of(file=None, option=mpp or None)


def _pixels(images: list[bytes]) -> Iterator[np.ndarray]:
    """Decodes one image at a time. Raises ImageError, whose `where` is the number of the image."""
    for number, image in enumerate(images):
        try:
            yield decode(image)
        except ImageError as error:
            raise ImageError(error.what, where=f"image {number}", key=error.key, fix=error.fix) from None


def _as_json(answer: Answer, top: int) -> dict[str, Any]:
    """An answer as in the response, with its `top` most similar classes.

    An answer that is held back has the label "not answered", its reason, and null for all numbers.
    """
    best = sorted(answer.similarities.items(), key=lambda item: -item[1])[:top]
    refusal = answer.refusal
    return {
        "label": answer.label,
        "similarity": answer.similarity,
        "margin": answer.margin,
        "prompt": answer.prompt,
        "top": [{"label": label, "similarity": similarity} for label, similarity in best],
        "answered": refusal is None,
        "forced": answer.forced,
        "gate": None if refusal is None else refusal.gate,
        "reason": None if refusal is None else refusal.reason,
        "probability": answer.probability,
        "dab": None if answer.dab is None else {"area": answer.dab, "unit": DAB_UNIT},
        "basis": asdict(answer.basis),
    }
