"""The kernels as functions that autograd can differentiate, once, with respect to the object.

A step of the training differentiates the object update, itself a derivative; the loss of the same object comes from the
same transforms. Autograd would keep and pass over every array on the way. The derivatives written here need one pair of
transforms for each pattern, like the computation itself, and keep the far-field waves only::

    update, deviance = Fit(O)        one pair of transforms; its derivative: one pair
    direction = L(U w)               derivatives with respect to U and O; none with respect to w
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..forward import PatternBatch
from .sums import Kernels


def fit(
    kernels: Kernels, object_array: Tensor, batch: PatternBatch, likelihood: str, *, needs_update: bool
) -> tuple[Tensor, Tensor]:
    """Compute the object update and the mean deviance of a batch.

    Args:
        kernels: the implementation.
        object_array: ``(B, h, w)`` complex.
        batch: the patterns; a derivative with respect to them is not computed.
        likelihood: of the deviance; the update is that of the amplitude likelihood.
        needs_update: whether the update is computed; otherwise it is empty.

    Returns:
        Update ``(B, h, w)`` complex, and deviance, scalar.
    """
    update, deviance = _Fit.apply(object_array, kernels, batch, likelihood, needs_update)  # type: ignore[no-untyped-call]
    return update, deviance


def precondition(kernels: Kernels, update: Tensor, weight: Tensor, object_array: Tensor, gain: Tensor) -> Tensor:
    """Compute ``L(U w)``; arguments as those of ``precondition`` in :class:`.sums.Kernels`."""
    direction: Tensor = _Precondition.apply(update, weight, object_array, gain, kernels)  # type: ignore[no-untyped-call]
    return direction


class _Fit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        object_array: Tensor,
        kernels: Kernels,
        batch: PatternBatch,
        likelihood: str,
        needs_update: bool,
    ) -> tuple[Tensor, Tensor]:
        found = kernels.fit(object_array, batch, likelihood, needs_update)
        ctx.set_materialize_grads(False)
        update = object_array.new_empty(0) if found.update is None else found.update
        if ctx.needs_input_grad[0]:
            ctx.kernels, ctx.batch, ctx.likelihood = kernels, batch, likelihood
            ctx.waves = found.waves  # and no output: the context is a part of it, so neither would be freed
            ctx.shape = (object_array.shape[-2], object_array.shape[-1])
        return update, found.deviance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        of_update, of_deviance = gradients
        nothing = (None,) * 4
        if of_update is None and of_deviance is None:
            return None, *nothing
        return ctx.kernels.fit_gradient(
            ctx.waves, ctx.batch, ctx.likelihood, of_update, of_deviance, ctx.shape
        ), *nothing


class _Precondition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type
        update: Tensor,
        weight: Tensor,
        object_array: Tensor,
        gain: Tensor,
        kernels: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(update, weight, object_array, gain)
        ctx.kernels = kernels
        return kernels.precondition(update, weight, object_array, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        of_update, of_object = ctx.kernels.precondition_gradient(gradient, *ctx.saved_tensors)
        return of_update, None, of_object, None, None
