"""MoE merging: the MLPs of all fine-tuned models stand side by side as experts behind a router; the rest is shared."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal

from torch import nn

from fusionlib.core import MethodCard
from fusionlib.ops.blocks import mlp_names
from fusionlib.ops.constraints import Count, NotNegative, Whole
from fusionlib.ops.experts import with_experts
from fusionlib.ops.guided import checked_result, checked_states, with_weights
from fusionlib.ops.streaming import mean, stream
from fusionlib.ops.values import checked

card = MethodCard(
    name="moe_merging",
    title="MoE Merging",
    cite="Sukhbaatar2024",
    kind="mix",
    takes="models",
    symmetric=False,
    grid=MappingProxyType({"rest": ("pretrained", "average"), "top_k": (1, 2)}),
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    *,
    rest: Literal["pretrained", "average"] = "pretrained",
    top_k: Count = 2,
    router_std: NotNegative = 0.02,
    seed: Whole = 0,
) -> nn.Module:
    """One model in which each MLP is a choice among the T fine-tuned MLPs, made per token by a random linear router.

    Args:
        rest: where everything but the MLPs comes from: "pretrained", or the "average" of the fine-tuned models.
        top_k: MLPs that a token is sent to, from 1 to T.
        router_std: standard deviation of the router's normal weights, 0 or greater.
        seed: of the routers, with the name of each MLP. Expert t is model t, so the order of models matters.
    Returns: a model of the pretrained class, but a MixtralForCausalLM for Llama and Mistral. Its routers are
        untrained: it is meant as the start of further training.
    Raises: ParameterError, also where there is no MLP or no Mixtral for the model; KeyMismatch; NonFiniteError.
    Source: Sukhbaatar et al. 2024, "Branch-Train-MiX", section 3.2 (rest="average"); mergekit's MoE with
        gate_mode="random" (rest from a base model).
    Deviates: stops before the fine-tuning with which the paper trains the routers and all else. mergekit's default
        routers are hidden states of a prompt per expert.
    """
    base, states = checked_states(pretrained, finetuned)
    shared = with_weights(pretrained, stream(base, states, mean)) if rest == "average" else pretrained
    experts = {name: [model.get_submodule(name) for model in finetuned] for name in mlp_names(pretrained)}
    mixed = with_experts(shared, experts, top_k=top_k, router_std=router_std, seed=seed)
    return checked_result(mixed, pretrained)
