"""A Llama or Mistral whose MLPs became experts, as the architecture that transformers has for it: Mixtral."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError, StateDict

CONVERTIBLE = ("LlamaForCausalLM", "MistralForCausalLM")
# Everything in Mixtral's configuration that a Llama or a Mistral has too; Llama has no sliding window.
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "sliding_window",
    "rope_parameters",
)


def is_convertible(model: nn.Module) -> bool:
    """Whether the model with experts for MLPs is a Mixtral: a causal language model of Llama's or Mistral's class."""
    return type(model).__name__ in CONVERTIBLE


def as_mixtral(
    model: nn.Module, experts: Mapping[str, Sequence[nn.Module]], routers: Mapping[str, Tensor], top_k: int
) -> nn.Module:
    """A ``MixtralForCausalLM`` with these experts and routers, and all other weights of the model.

    Args:
        model: for which :func:`is_convertible` holds; it is left alone.
        experts: name of every MLP of the model -> the MLPs that stand in its place, E of them everywhere.
        routers: the same names -> router weights (E, hidden size).
        top_k: experts per token.
    Returns: a model that ``save_pretrained`` and ``from_pretrained`` handle, in evaluation mode, with the attribute
        ``active_parameters``.
    Raises: ParameterError, naming the parameters, if the model has some that Mixtral lacks, such as biases.
    """
    num_experts = len(next(iter(experts.values())))
    mixtral = _empty(model, num_experts, top_k)
    state, source = mixtral.state_dict(), model.state_dict()
    _check_expressible(model, source, state, experts)
    with torch.no_grad():
        for key in source.keys() & state.keys():
            state[key].copy_(source[key])
        for name, mlps in experts.items():
            state[f"{name}.gate.weight"].copy_(routers[name])
            for index, mlp in enumerate(mlps):
                given = mlp.state_dict()
                gate_up, down = state[f"{name}.experts.gate_up_proj"], state[f"{name}.experts.down_proj"]
                width = down.shape[-1]
                gate_up[index, :width].copy_(given["gate_proj.weight"])
                gate_up[index, width:].copy_(given["up_proj.weight"])
                down[index].copy_(given["down_proj.weight"])
    stored = sum(parameter.numel() for parameter in mixtral.parameters())
    unused = num_experts - top_k
    idle = sum(unused * sum(p.numel() for p in mlps[0].parameters()) for mlps in experts.values())
    mixtral.active_parameters = stored - idle  # type: ignore[assignment]
    return mixtral


def _empty(model: nn.Module, num_experts: int, top_k: int) -> nn.Module:
    from transformers import AutoModelForCausalLM, MixtralConfig
    from transformers.initialization import no_init_weights

    config: Any = model.config
    known = config.to_dict()
    settings = {name: copy.deepcopy(known[name]) for name in _SHARED if name in known}
    settings |= {"num_local_experts": num_experts, "num_experts_per_tok": top_k}
    first = next(model.parameters())
    with no_init_weights():  # all weights are about to be overwritten, and random numbers stay undrawn
        mixtral: Any = AutoModelForCausalLM.from_config(
            MixtralConfig(**settings, attention_dropout=config.attention_dropout or 0.0),
            dtype=first.dtype,
            attn_implementation=config._attn_implementation,
        )
    mixtral.tie_weights()
    mixtral.generation_config = copy.deepcopy(model.generation_config)
    return mixtral.to(first.device).eval()


def _check_expressible(
    model: nn.Module, source: StateDict, state: StateDict, experts: Mapping[str, Sequence[nn.Module]]
) -> None:
    expected = {f"{name}.{part}_proj.weight" for name in experts for part in ("gate", "up", "down")}
    homeless = sorted(source.keys() - state.keys() - expected)
    if homeless:
        listed = ", ".join(homeless[:5]) + (", ..." if len(homeless) > 5 else "")
        raise ParameterError(
            f"{type(model).__name__} has {len(homeless)} parameters for which Mixtral has no place: {listed}. "
            "Only models without biases (attention_bias and mlp_bias both False) can become a Mixtral."
        )
