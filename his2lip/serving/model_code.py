"""The code that MLflow stores with a logged model and runs to serve it. So the model needs no pickle."""

from mlflow.models import set_model

from his2lip.serving.mlflow_model import ServedModel

set_model(ServedModel())
