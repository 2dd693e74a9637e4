"""The processes of a training as Lightning sees them: connected already, by this package or by torchrun."""

from __future__ import annotations

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from ..data.sharding import Processes


class ConnectedEnvironment(LightningEnvironment):
    """Names the processes to Lightning, which would otherwise follow the variables of a cluster.

    Args:
        connected: the processes.
    """

    def __init__(self, connected: Processes) -> None:
        super().__init__()
        self._connected = connected
        # Loggers write nothing where a cluster has given this process another rank.
        super().set_global_rank(connected.rank)

    @property
    def creates_processes_externally(self) -> bool:
        """Whether Lightning starts no process: always."""
        return True

    def world_size(self) -> int:
        """Return the number of processes."""
        return self._connected.size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the number is given."""

    def global_rank(self) -> int:
        """Return the number of this process, from 0."""
        return self._connected.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the number is given."""

    def local_rank(self) -> int:
        """Return the number of this process on its machine, from 0."""
        return self._connected.local_rank

    def node_rank(self) -> int:
        """Return the number of the machine, from 0."""
        return self._connected.rank // self._connected.local_size

    def teardown(self) -> None:
        """Do nothing: the variables of the cluster stay."""


def make_strategy(connected: Processes) -> DDPStrategy | str:
    """Return Lightning's strategy: DDP, which averages the gradients of the processes, or that of one process."""
    if connected.size == 1:
        return 'auto'
    # Probe and positions are the same in all processes: the calibration exchanges its sums.
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=False)
