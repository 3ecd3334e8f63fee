"""An MLP that is merged anew for every sample: pretrained weights plus task vectors, weighed by a router.

Its weights are theta_0 + sum_t r_t(h) tau_t, where h is the sample's own input to the MLP. The weights of all
samples of a chunk come from one product, (samples x T) times (T x weights), and the samples run through them side
by side. Applying all T + 1 MLPs to every token instead costs more as soon as a sample has several tokens:
``benchmarks/we_moe.py`` measures both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fusionlib.core import ParameterError
from fusionlib.ops.gram import linear_layers
from fusionlib.ops.statedict import compute_dtype
from fusionlib.ops.substitutes import Substitute

# Bytes of merged weights that one MLP makes at a time; a small chunk stays near the cache of a CPU.
CPU_WEIGHTS = 16 << 20
GPU_WEIGHTS = 1 << 30
ROUTER_STD = 0.01


class WeightEnsembledMLP(Substitute):
    """T fine-tuned MLPs as one, whose weights a router sets for every sample.

    Args:
        base: the pretrained MLP; a copy of it is kept.
        num_tasks: T; the task vectors and the router are zero until :meth:`fill` and :meth:`draw_router`.
        router_layers: 2 (linear, ReLU, linear), 1 (linear) or 0 (the same weights for every sample).

    Attributes:
        task_vectors: as ``base``, with parameters of shape (T, ...).
        router: from token features (B, N, width) to weights (B, N, T).
        padding: what the model was called with as attention mask, (B, N), 0 at padding; None outside a call.
    Raises: ParameterError, for another number of layers.
    """

    def __init__(self, base: nn.Module, num_tasks: int, router_layers: int) -> None:
        super().__init__()
        if type(router_layers) is not int or router_layers not in (0, 1, 2):
            raise ParameterError(f"router_layers = {router_layers!r} is not allowed; it must be 0, 1 or 2.")
        self.base = copy.deepcopy(base).requires_grad_(False)
        self.task_vectors = copy.deepcopy(base).requires_grad_(False)
        for parameter in self.task_vectors.parameters():
            parameter.data = parameter.new_zeros(num_tasks, *parameter.shape)
        like = {"dtype": compute_dtype(*base.parameters()), "device": next(base.parameters()).device}
        self.router = _router(_width(base), num_tasks, router_layers, like)
        self.num_tasks, self.router_layers = num_tasks, router_layers
        self.padding: Tensor | None = None
        self._mask_name = "attention_mask"

    @torch.no_grad()
    def fill(self, finetuned: Sequence[nn.Module]) -> None:
        """Takes the task vectors from T fine-tuned MLPs."""
        theirs = [dict(model.named_parameters()) for model in finetuned]
        own = dict(self.task_vectors.named_parameters())
        for name, start in self.base.named_parameters():
            dtype = compute_dtype(start)
            for index, model in enumerate(theirs):
                if not torch.equal(model[name], start):  # so that an infinite constant leaves 0, not NaN
                    own[name][index].copy_(model[name].to(dtype) - start.to(dtype))

    @torch.no_grad()
    def draw_router(self, init: float, shared: torch.Generator, by_task: Sequence[torch.Generator]) -> None:
        """Sets the last bias to ``init``, other biases to 0, and draws weights from N(0, 0.01^2).

        Args:
            shared: for the hidden layer.
            by_task: for each task's row of the last layer, so that the order of the tasks is without effect.
        """
        layers = [layer for layer in self.router.modules() if isinstance(layer, nn.Linear | _Constant)]
        for layer in layers:
            layer.bias.fill_(init if layer is layers[-1] else 0.0)
            if isinstance(layer, nn.Linear):
                width, sources = layer.in_features, by_task if layer is layers[-1] else [shared] * layer.out_features
                drawn = torch.stack([torch.randn(width, generator=source) for source in sources])
                layer.weight.copy_(ROUTER_STD * drawn)

    def routing(self, hidden: Tensor) -> Tensor:
        """The weights (B, T) for inputs (B, ..., width): the mean over tokens of the router's answers.

        Padding is left out. A router without layers gives one row for all samples, (1, T).
        """
        features = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        by_token = self.router(features.to(next(self.router.parameters()).dtype))
        if self.padding is None or self.padding.shape != by_token.shape[:2]:
            return by_token.mean(dim=1)
        real = self.padding.to(by_token).unsqueeze(-1)
        return (by_token * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)

    def merged(self, weights: Tensor) -> dict[str, Tensor]:
        """The parameters of the MLP for weights (B, T), each of shape (B, ...)."""
        own = dict(self.task_vectors.named_parameters())
        found = {}
        for name, start in self.base.named_parameters():
            flat = torch.addmm(start.reshape(1, -1), weights.to(start.dtype), own[name].flatten(1))
            found[name] = flat.view(len(weights), *start.shape)
        return found

    def forward(self, hidden: Tensor) -> Tensor:
        """Inputs (B, ..., width) to outputs; those of a sample do not depend on the others in the batch."""
        weights = self.routing(hidden)
        if len(weights) == 1:
            parameters = {name: value[0] for name, value in self.merged(weights).items()}
            return functional_call(self.base, parameters, (hidden,))
        bound = CPU_WEIGHTS if hidden.device.type == "cpu" else GPU_WEIGHTS
        size = max(1, bound // sum(p.numel() * p.element_size() for p in self.base.parameters()))
        pieces = list(zip(hidden.split(size), weights.split(size), strict=True))
        if len(pieces) == 1 or not weights.requires_grad:
            return torch.cat([self._side_by_side(*piece) for piece in pieces])
        # The backward pass would keep the merged weights of all samples; it makes them again, a chunk at a time.
        return torch.cat([checkpoint(self._side_by_side, *piece, use_reentrant=False) for piece in pieces])

    def _side_by_side(self, hidden: Tensor, weights: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(self.base, parameters, (sample,))

        return torch.vmap(one, randomness="different")(self.merged(weights), hidden)

    def joined(self, model: nn.Module) -> None:
        """From now on sees the attention mask that the model is called with (as a keyword)."""
        (name,) = (name for name, module in model.named_modules() if module is self)
        self._mask_name = "decoder_attention_mask" if name.startswith("decoder.") else "attention_mask"
        model.register_forward_pre_hook(self._see_padding, with_kwargs=True)
        model.register_forward_hook(self._forget_padding, always_call=True)

    def _see_padding(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get(self._mask_name)
        self.padding = mask if isinstance(mask, Tensor) else None

    def _forget_padding(self, *_: Any) -> None:
        self.padding = None

    def structure(self) -> dict[str, Any]:
        """The numbers of tasks and of the router's layers."""
        return {"num_tasks": self.num_tasks, "router_layers": self.router_layers}

    @classmethod
    def rebuild(cls, original: nn.Module, structure: Mapping[str, Any]) -> WeightEnsembledMLP:
        """An ensembled MLP of this structure, with task vectors and router at zero."""
        return cls(original, structure["num_tasks"], structure["router_layers"])


class _Constant(nn.Module):
    """The router without layers: one answer, whatever the tokens are."""

    def __init__(self, num_tasks: int, like: Mapping[str, Any]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_tasks, **like))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.bias.view(1, 1, -1)


def _width(mlp: nn.Module) -> int:
    _, first, transposed = next(linear_layers(mlp))
    return first.get_parameter("weight").shape[0 if transposed else 1]


def _router(width: int, num_tasks: int, layers: int, like: Mapping[str, Any]) -> nn.Module:
    if layers == 0:
        return _Constant(num_tasks, like)
    last = nn.Linear(width, num_tasks, device="meta")
    chain = [last] if layers == 1 else [nn.Linear(width, width, device="meta"), nn.ReLU(), last]
    router = nn.Sequential(*chain).to(like["dtype"]).to_empty(device=like["device"])
    for parameter in router.parameters():
        nn.init.zeros_(parameter)
    return router
