"""MoE upscaling: every MLP of one model becomes several copies behind a router, ready to be trained further."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fusionlib.core import MethodCard
from fusionlib.ops.blocks import mlp_names
from fusionlib.ops.constraints import Count, NotNegative, Whole
from fusionlib.ops.experts import with_experts
from fusionlib.ops.guided import check_one, checked_result
from fusionlib.ops.values import checked

card = MethodCard(
    name="moe_upscaling",
    title="MoE Upscaling",
    cite="Komatsuzaki2023",
    kind="mix",
    takes="models",
    fuses="pretrained",
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module] = (),
    *,
    num_experts: Count = 4,
    top_k: Count = 2,
    router_std: NotNegative = 0.02,
    seed: Whole = 0,
) -> nn.Module:
    """Copy every dense MLP ``num_experts`` times and let a random linear router choose ``top_k`` copies per token.

    Args:
        finetuned: not used; every method has the same two first arguments.
        num_experts: copies of each MLP, 1 or more.
        top_k: copies that a token is sent to, from 1 to ``num_experts``.
        router_std: standard deviation of the router's normal weights, 0 or greater.
        seed: of the routers, with the name of each MLP.
    Returns: a model with the same answers; of its own class, but a MixtralForCausalLM for Llama and Mistral.
    Raises: ParameterError, also where there is no MLP or no Mixtral for the model; NonFiniteError.
    Source: Komatsuzaki et al. 2023, "Sparse upcycling", section 3; top-k routing of Shazeer et al. 2017 with the
        gates of Jiang et al. 2024 (Mixtral): softmax over the chosen experts.
    Deviates: no noise, capacity limit or balancing loss. The paper replaces every second MLP, and lets experts choose
        tokens in encoders.
    """
    check_one(pretrained)
    experts = {name: [pretrained.get_submodule(name)] * num_experts for name in mlp_names(pretrained)}
    mixed = with_experts(pretrained, experts, top_k=top_k, router_std=router_std, seed=seed)
    return checked_result(mixed, pretrained)
