"""How the workers on one machine find each other: through a file, instead of a port open to the network."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


@dataclass
class LocalTorchConfig(TorchConfig):
    """Ray Train's torch backend for workers that all run on this machine.

    torch's TCPStore, which the default uses, listens on all interfaces without a password.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    _folder: Path | None = None

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Initializes the process group of the workers through a file that only the user can read."""
        # A folder that is removed with this local Ray.
        session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
        self._folder = Path(tempfile.mkdtemp(prefix="his2lip-", dir=session))
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        worker_group.execute(_set_torch_distributed_env_vars)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend or ("nccl" if gpus else "gloo"),
                    world_rank=rank,
                    world_size=size,
                    init_method=(self._folder / "store").as_uri(),
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        super().on_shutdown(worker_group, backend_config)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
