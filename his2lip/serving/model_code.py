"""The file that MLflow stores with a logged model and runs to serve it (models from code, so no pickle)."""

from mlflow.models import set_model

from his2lip.serving.mlflow_model import ServedModel

set_model(ServedModel())
