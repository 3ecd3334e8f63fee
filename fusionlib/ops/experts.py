"""A mixture of experts in the place of a dense MLP: a router sends every token to the few experts it scores best."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError
from fusionlib.ops.coefficients import finite, in_range, whole
from fusionlib.ops.mixtral import as_mixtral, is_convertible
from fusionlib.ops.substitutes import Substitute, with_substitutes


class MixtureOfExperts(Substitute):
    """For each token the mean of ``top_k`` experts' answers, weighed by the softmax of their scores.

    The softmax runs over the chosen experts alone, so the weights of a token sum to 1 and identical experts answer as
    one of them does. Only the chosen experts are computed.

    Args:
        experts: MLPs of one shape that treat every token by itself; copies of them are kept.
        router_weight: scores of the experts per hidden unit, shape (experts, hidden size).
        top_k: experts per token.
    """

    def __init__(self, experts: Sequence[nn.Module], router_weight: Tensor, top_k: int) -> None:
        super().__init__()
        check_top_k(top_k, len(experts))
        self.experts = nn.ModuleList(copy.deepcopy(expert) for expert in experts)
        self.router = nn.Linear(router_weight.shape[1], len(experts), bias=False, device="meta")
        self.router.weight = nn.Parameter(router_weight.detach().clone())
        self.top_k = top_k

    def forward(self, hidden: Tensor) -> Tensor:
        """Tokens to tokens: (..., hidden size) to the same shape and dtype."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        precision = torch.promote_types(hidden.dtype, torch.float32)  # so that a half-precision sum is rounded once
        scores, chosen = self.router(tokens).topk(self.top_k, dim=-1)
        gates = scores.softmax(dim=-1, dtype=precision)
        answer = torch.zeros(tokens.shape, dtype=precision, device=tokens.device)
        for index, expert in enumerate(self.experts):
            rows, place = (chosen == index).nonzero(as_tuple=True)
            weighed = expert(tokens.index_select(0, rows)) * gates[rows, place, None]
            answer.index_add_(0, rows, weighed.to(precision))
        return answer.to(hidden.dtype).view(hidden.shape)

    def structure(self) -> dict[str, Any]:
        """The numbers of experts, of experts per token, and of hidden units."""
        return {
            "num_experts": len(self.experts),
            "top_k": self.top_k,
            "hidden_size": self.router.in_features,
        }

    @classmethod
    def rebuild(cls, original: nn.Module, structure: Mapping[str, Any]) -> MixtureOfExperts:
        """A mixture of this structure whose experts are copies of the MLP and whose router is zero."""
        num_experts, weight = structure["num_experts"], _first_matrix(original)
        router = torch.zeros(num_experts, structure["hidden_size"], dtype=weight.dtype, device=weight.device)
        return cls([original] * num_experts, router, structure["top_k"])

    def num_active(self) -> int:
        """Parameters that one token reads: the router and ``top_k`` experts."""
        one = sum(parameter.numel() for parameter in self.experts[0].parameters())
        return self.router.weight.numel() + self.top_k * one


def with_experts(
    model: nn.Module, experts: Mapping[str, Sequence[nn.Module]], *, top_k: int, router_std: float, seed: int
) -> nn.Module:
    """A copy of the model in which mixtures of experts, with random routers, stand in the place of MLPs.

    Args:
        experts: name of an MLP of the model -> the MLPs that become its experts.
        top_k, router_std, seed: as in :class:`MixtureOfExperts` and :func:`router_weight`.
    Returns: for a causal Llama or Mistral a Mixtral, else the model's own class with :class:`MixtureOfExperts` inside.
    Raises: ParameterError, from the hyper-parameters, or if Mixtral cannot express the model.
    """
    for mlps in experts.values():
        check_top_k(top_k, len(mlps))
    routers = {name: router_weight(mlps[0], name, len(mlps), router_std, seed) for name, mlps in experts.items()}
    if is_convertible(model):
        return as_mixtral(model, experts, routers, top_k)
    return with_substitutes(model, {n: MixtureOfExperts(mlps, routers[n], top_k) for n, mlps in experts.items()})


def router_weight(mlp: nn.Module, name: str, num_experts: int, std: float, seed: int) -> Tensor:
    """Random scores of shape (experts, hidden size), in the dtype and on the device of the MLP.

    Args:
        mlp: the dense MLP; its first matrix says how wide a token is.
        name: of the MLP in its model. The numbers depend on it, the seed and the shape alone.
        std: standard deviation of the scores' weights, 0 or greater.
    """
    in_range("router_std", finite("router_std", std), 0, float("inf"))
    whole("seed", seed, 0)
    weight = _first_matrix(mlp)
    # torch's CPU generator looks at 32 bits of its seed only, so everything goes into them
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}\n{name}\nrouter".encode()))
    drawn = std * torch.randn(num_experts, _width(mlp), generator=generator)
    return drawn.to(device=weight.device, dtype=weight.dtype)


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raises ParameterError unless ``top_k`` is an integer from 1 to the number of experts."""
    whole("top_k", top_k, 1)
    if top_k > num_experts:
        raise ParameterError(
            f"top_k = {top_k} is more than the {num_experts} experts there are; use {num_experts} or fewer."
        )


def _first_layer(mlp: nn.Module) -> nn.Module:
    # mlp_names finds only MLPs in which there is one
    weights = {child: getattr(child, "weight", None) for child in mlp.children()}
    return next(child for child, weight in weights.items() if isinstance(weight, Tensor) and weight.ndim == 2)


def _first_matrix(mlp: nn.Module) -> Tensor:
    return _first_layer(mlp).get_parameter("weight")


def _width(mlp: nn.Module) -> int:
    layer = _first_layer(mlp)
    # The Conv1D of GPT-2 stores its weight as (inputs, outputs)
    return _first_matrix(mlp).shape[0 if type(layer).__name__ == "Conv1D" else 1]
