"""Training: its configuration, the plain loop, and Ray Train around it."""

from his2lip.training.config import TrainConfig

__all__ = ["TrainConfig"]
