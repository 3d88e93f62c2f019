"""Imported by the process that children are forked from: loads once what each run would load again."""

from __future__ import annotations

import plain_run  # noqa: F401
import torch

import his2lip.evaluation.grid
import his2lip.tracking.run  # noqa: F401
from his2lip.data.captions import CaptionBank
from his2lip.models.load import load_model

torch.set_num_threads(1)  # a pool of threads would not survive the fork
load_model("tiny").tokenize(CaptionBank.templates().distinct()[:1])
