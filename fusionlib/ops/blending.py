"""One merged model whose weights follow a table of coefficients, and the gradient of those coefficients.

With theta(c) = theta_0 + sum_t c_t tau_t the chain rule gives dL/dc_t = <dL/dtheta, tau_t>. So an ordinary
backward pass through one model is enough: its gradient is compared with each task vector, a stretch at a time,
and no graph ever holds more than one copy of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionlib.core import KeyMismatch
from fusionlib.ops.finite import check_result
from fusionlib.ops.given import check_modules
from fusionlib.ops.statedict import compute_dtype, fused_names
from fusionlib.ops.streaming import CPU_BLOCK, GPU_BLOCK, moved, stream


@dataclass(frozen=True)
class _Stretch:
    """Numbers ``start:stop`` of one parameter: views of the merged, the pretrained and the fine-tuned models."""

    parameter: nn.Parameter
    row: int
    start: int
    stop: int
    base: Tensor
    models: tuple[Tensor, ...]

    def task_vectors(self, scratch: Tensor) -> Tensor:
        """Shape (T, n), in ``scratch``, which every stretch uses again: to keep them would take T models' memory."""
        tau = scratch[: len(self.models) * (self.stop - self.start)].view(len(self.models), -1)
        base = self.base.to(tau.dtype)
        for row, model in zip(tau, self.models, strict=True):
            torch.sub(model.to(tau.dtype), base, out=row)
        return tau


class Blend:
    """A merged model whose parameters are overwritten in place as its coefficients change.

    Args:
        pretrained: theta_0; neither it nor ``finetuned`` is changed.
        finetuned: T models of the same architecture.
        init: every coefficient at the start. Floating-point buffers are merged with it once and for all;
            integer buffers are the pretrained ones.
        by_layer: a row of coefficients for each parameter tensor, instead of one row for all of them.

    Attributes:
        model: the merged model, in evaluation mode; all its parameters ask for gradients.
        names: of the parameters, in the order of the rows; tied ones once, infinite constants not at all.
        coefficients: shape (1, T), or (parameters, T) if ``by_layer``, float32 (float64 for float64 models).
    Raises: KeyMismatch, NonFiniteError, ParameterError, from the weights.
    """

    def __init__(self, pretrained: nn.Module, finetuned: Sequence[nn.Module], init: float, *, by_layer: bool) -> None:
        check_modules(pretrained, finetuned)
        base = pretrained.state_dict()
        states = [model.state_dict() for model in finetuned]
        scales = [float(init)] * len(states)
        start = stream(base, states, lambda block: moved(block.base, block.models, scales, block.room))
        self.model = copy.deepcopy(pretrained).eval()
        # What stream lets through though it is not finite is a constant, which does not depend on coefficients.
        once = {name for name in fused_names(base) if bool(torch.isfinite(start[name]).all())}
        own = dict(self.model.named_parameters())
        self._asked = {name: parameter.requires_grad for name, parameter in own.items()}
        self.names = [name for name in own if name in once]
        if not self.names:
            raise KeyMismatch("the pretrained model has no floating-point parameters, so there is nothing to fuse.")
        for name, buffer in self.model.named_buffers():
            if name in start:
                buffer.copy_(start[name])
        for name, parameter in own.items():
            # The result of the stream is contiguous, so that a flat view of a parameter can be written to.
            parameter.data, parameter.grad = start[name], None
            parameter.requires_grad_(True)
        dtype, device = compute_dtype(*(base[name] for name in self.names)), base[self.names[0]].device
        rows = len(self.names) if by_layer else 1
        self.coefficients = torch.full((rows, len(states)), float(init), dtype=dtype, device=device)
        longest = max(base[name].numel() for name in self.names)
        size = max(1, min(longest, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // len(states)))
        self._scratch = torch.empty(size * len(states), dtype=dtype, device=device)
        self._stretches = [
            _Stretch(
                own[name],
                row if by_layer else 0,
                at,
                min(at + size, base[name].numel()),
                *_views([base, *states], name, at, size),
            )
            for row, name in enumerate(self.names)
            for at in range(0, base[name].numel(), size)
        ]

    @torch.no_grad()
    def apply(self) -> None:
        """Overwrites the model's parameters with theta_0 + sum_t c_t tau_t, and forgets their gradients.

        No task vector is written for that: see ``moved``.
        """
        rows = self.coefficients.tolist()
        for piece in self._stretches:
            target = piece.parameter.data.view(-1)[piece.start : piece.stop]
            room = target if target.dtype == self._scratch.dtype else self._scratch[: len(target)]
            result = moved(piece.base, piece.models, rows[piece.row], room)
            if result is not target:
                target.copy_(result)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """The gradient of the coefficients, in their shape, from what backward passes left in the parameters."""
        found = torch.zeros_like(self.coefficients)
        for piece in self._stretches:
            if piece.parameter.grad is not None:  # a parameter that the forward does not use has none
                tau = piece.task_vectors(self._scratch)
                slope = piece.parameter.grad.reshape(-1)[piece.start : piece.stop]
                found[piece.row] += torch.mv(tau, slope.to(tau.dtype))
        return found

    def finish(self) -> nn.Module:
        """The model, without gradients, its parameters as trainable as the pretrained ones.

        Raises: NonFiniteError, naming the parameter, if one does not fit its dtype.
        """
        parameters = dict(self.model.named_parameters())
        check_result({name: parameters[name].detach() for name in self.names}, {})
        for name, parameter in self.model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._asked[name])
        return self.model


def _views(states: Sequence[dict[str, Tensor]], name: str, start: int, size: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    base, *models = (state[name].detach().reshape(-1)[start : start + size] for state in states)
    return base, tuple(models)
