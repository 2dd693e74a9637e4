"""The Lightning module: it connects network, losses and optimiser; the mathematics is in the modules it imports."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from ..config import Config
from ..data.sharding import processes
from ..errors import TrainingError
from ..models.registry import build_generator
from ..physics.kernels.selection import choose_kernels
from .batches import TrainingBatch
from .calibration import Calibration
from .losses import pinn_training_loss, pinn_validation_loss, supervised_loss
from .precision import is_scaling, set_precision
from .schedules import fast_forward, make_optimizer, make_schedule
from .state import TRAINING_LOSS, VALIDATION_LOSS, Monitor, TrainingState


class PtychoPINNModule(pl.LightningModule):
    """Trains the generator of ``config.model`` by the loss of its ``model_type``.

    Args:
        config: the configuration tree.
        monitor: the loss that a plateau of the learning rate follows.
        calibration: runs before every epoch; None where only the network is learned.
    """

    def __init__(self, config: Config, monitor: Monitor, calibration: Calibration | None = None) -> None:
        super().__init__()
        self.config = config
        self.generator = build_generator(config.model)
        set_precision(self.generator, config.training.precision)
        self.calibration = calibration
        # Not Lightning's own mean: between processes it rounds the sum of the weights.
        self._training_loss, self._validation_loss = MeanMetric('error'), MeanMetric('error')
        self._monitor = monitor
        self._resumed = TrainingState()
        self._first_epoch = 0
        self._batch = 0

    def resume(self, state: TrainingState) -> None:
        """Continue after the finished epochs of a stopped run."""
        self._resumed, self._first_epoch = state, state.epoch
        self.load_state_dict(state.weights)
        if self.calibration is not None:
            self.calibration.restore()

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0; Lightning counts those of this process only."""
        return self._first_epoch + self.current_epoch

    def on_train_epoch_start(self) -> None:
        """Calibrate, then seed the random numbers of the epoch: a resumed run has the same."""
        generator = self.generator if self.epoch else None
        if self.calibration is not None and not self.calibration.run(generator):
            self.trainer.should_stop = True
        torch.manual_seed(int(np.random.SeedSequence((self.config.training.seed, self.epoch)).generate_state(1)[0]))

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        """Return the loss of one batch.

        Raises:
            TrainingError: the loss is not finite.
        """
        self._batch = batch_index + 1
        kernels = choose_kernels(self.config.execution.kernels, batch.reference.device)
        if self.config.model.model_type == 'supervised':
            loss = supervised_loss(self.generator, batch, kernels)
        else:
            loss = pinn_training_loss(self.generator, batch, self.config.training.likelihood, kernels)
        self._refuse_non_finite(loss, f'training loss is not finite in epoch {self.epoch + 1}, batch {self._batch}')
        self._log(TRAINING_LOSS, self._training_loss, loss, len(batch.reference) if batch.weight else 0)
        return loss * batch.weight

    def validation_step(self, batch: TrainingBatch, batch_index: int) -> None:
        """Log the loss on held-out positions.

        Raises:
            TrainingError: the loss is not finite.
        """
        kernels = choose_kernels(self.config.execution.kernels, batch.reference.device)
        if self.config.model.model_type == 'supervised':
            loss = supervised_loss(self.generator, batch, kernels)
        else:
            loss = pinn_validation_loss(self.generator, batch, self.config.training.likelihood, kernels)
        self._refuse_non_finite(loss, f'loss on held-out positions is not finite after epoch {self.epoch + 1}')
        size = batch.scored.amplitudes.shape[1]
        self._log(VALIDATION_LOSS, self._validation_loss, loss, size if batch.weight else 0)

    def _log(self, name: str, mean: MeanMetric, loss: Tensor, weight: int) -> None:
        """Add ``loss`` to the weighted mean of the epoch over all processes."""
        mean.update(loss.detach(), weight)
        self.log(name, mean, on_step=False, on_epoch=True, logger=False)

    def _refuse_non_finite(self, loss: Tensor, what: str) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f'The {what}: the best model so far is kept; lower the learning rate, and look for impossible counts '
                'among the patterns.'
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Check the gradient of every parameter before it reaches the weights.

        Raises:
            TrainingError: one is not finite; with float16, only when smaller scales of the loss did not help.
            Exception: another process has failed: gradients on a GPU would be waited for without end.
        """
        processes().agree()
        if is_scaling(self.trainer.precision_plugin):
            return
        gradients = [(name, one.grad) for name, one in self.named_parameters() if one.grad is not None]
        largest = torch.stack([gradient.abs().max() for _, gradient in gradients])
        if torch.isfinite(largest).all():
            return
        name = next(name for (name, _), value in zip(gradients, largest.tolist(), strict=True) if not value < torch.inf)
        raise TrainingError(
            f'The gradient of "{name}" is not finite in epoch {self.epoch + 1}, batch {self._batch}, although the loss '
            'is: the best model so far is kept; lower the learning rate or the number of unrolled steps, set '
            "training.precision to '32', and look for impossible counts among the patterns."
        )

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of Lightning's many forms
        """Return optimiser and schedule of the configuration, in the state of a stopped run if there is one."""
        optimizer = make_optimizer(self.parameters(), self.config)
        steps_per_epoch = int(self.trainer.estimated_stepping_batches) // (self.trainer.max_epochs or 1)
        schedule = make_schedule(optimizer, self.config, self.config.training.epochs * steps_per_epoch)
        if self._first_epoch:
            losses = [self._monitor.value(record) for record in self._resumed.history]
            fast_forward(optimizer, schedule, steps_per_epoch * len(losses), losses)
            groups = optimizer.state_dict()['param_groups']
            optimizer.load_state_dict({'state': self._resumed.moments, 'param_groups': groups})
        if schedule is None:
            return optimizer
        if isinstance(schedule, ReduceLROnPlateau):
            # Not strict: a run that is stopped in its first validation has no monitored loss yet.
            plateau = {'scheduler': schedule, 'interval': 'epoch', 'monitor': self._monitor.name, 'strict': False}
            return {'optimizer': optimizer, 'lr_scheduler': plateau}
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}
