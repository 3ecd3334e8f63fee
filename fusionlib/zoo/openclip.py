"""open_clip's configurations and weights under the names of transformers' CLIP: the same numbers, the same features.

Nothing here needs open_clip itself: a configuration is JSON and weights are tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.key_styles import restyle

if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPVisionConfig

_SIZES = {"layers", "width", "mlp_ratio", "act_kwargs", "norm_kwargs"}
# what may stand in a configuration without changing what the tower computes when it is evaluated
_HARMLESS = {
    "vision": {"patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type"}
    | {"final_ln_after_pool"},
    "text": {"output_tokens", "pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"},
}
_OWN = {
    "vision": {"head_width", "patch_size", "image_size"},
    "text": {"heads", "vocab_size", "context_length"},
}
_USUAL = {"pool_type": {"vision": "tok", "text": "argmax"}, "proj_type": {"text": "linear"}}
_TOP = {
    "vision": {
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "ln_pre": "vision_model.pre_layrnorm",
        "ln_post": "vision_model.post_layernorm",
        "proj": "visual_projection.weight",
    },
    "text": {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
        "text_projection": "text_projection.weight",
    },
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_ONLY = {
    "vision": "of open_clip's models only CLIP's plain vision transformer (ViT, class token, no timm) can be used. A "
    "model that transformers has as CLIPModel can be given in its format.",
    "text": "only CLIP's own text tower makes zero-shot heads here. Pass heads=.",
}
_TEXT_KEYS = ("text.", "transformer.", "token_embedding.", "ln_final.")
_OTHER_KEYS = ("positional_embedding", "text_projection", "logit_scale", "logit_bias", "attn_mask")


def vision_config(facts: Mapping[str, Any], where: str) -> CLIPVisionConfig:
    """The configuration of ``CLIPVisionModelWithProjection`` that computes what open_clip's vision tower does.

    Args:
        facts: open_clip's ``model_cfg``.
        where: named in errors.

    Raises: CheckpointError if the tower is of another architecture: timm's, a ResNet, one with other pooling.
    """
    from transformers import CLIPVisionConfig

    tower = facts["vision_cfg"]
    if tower.get("timm_model_name"):
        raise CheckpointError(f"the vision tower in {where} is timm's {tower['timm_model_name']!r}; {_ONLY['vision']}")
    if isinstance(tower.get("layers", 12), list | tuple):
        raise CheckpointError(f"the vision tower in {where} is a modified ResNet; {_ONLY['vision']}")
    common = _common(tower, 768, facts, "vision", where)
    return CLIPVisionConfig.from_dict(
        {
            **common,
            "num_attention_heads": common["hidden_size"] // tower.get("head_width", 64),
            "patch_size": _side(tower.get("patch_size", 16), "patch_size", where),
            "image_size": _side(tower.get("image_size", 224), "image_size", where),
        }
    )


def text_config(facts: Mapping[str, Any], where: str) -> CLIPTextConfig:
    """The configuration of ``CLIPTextModelWithProjection`` that computes what open_clip's text tower does.

    Raises: CheckpointError if the text tower or its tokenizer is another than CLIP's.
    """
    from transformers import CLIPTextConfig

    tower = facts["text_cfg"]
    foreign = [key for key in ("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs") if tower.get(key)]
    if foreign:
        raise CheckpointError(
            f"the text tower in {where} has {', '.join(f'{key}: {tower[key]}' for key in foreign)}; {_ONLY['text']}"
        )
    return CLIPTextConfig.from_dict(
        {
            **_common(tower, 512, facts, "text", where),
            "num_attention_heads": tower.get("heads", 8),
            "vocab_size": tower.get("vocab_size", 49408),
            "max_position_embeddings": tower.get("context_length", 77),
            # with this value transformers reads the features at the largest token, as open_clip does
            "eos_token_id": 2,
        }
    )


def vision_state(state: StateDict) -> StateDict:
    """The vision tower under the keys of ``CLIPVisionModelWithProjection``, float32.

    Args:
        state: of a whole model (``CLIP`` or ``CustomTextCLIP``) or of ``model.visual``; with or without the
            prefixes that wrappers leave (``module.``, ``model.``). Keys of no known tower are passed on, for
            the comparison of keys to complain about.
    """
    state = without_wrappers(state)
    if any(name.startswith("visual.") for name in state):
        state = {n: t for n, t in state.items() if not n.startswith(_TEXT_KEYS) and n not in _OTHER_KEYS}
    return _renamed({name.removeprefix("visual."): tensor for name, tensor in state.items()}, "vision")


def text_state(state: StateDict) -> StateDict:
    """The text tower of a whole model under the keys of ``CLIPTextModelWithProjection``, float32."""
    state = {name: tensor for name, tensor in without_wrappers(state).items() if not name.startswith("visual.")}
    state = {n: t for n, t in state.items() if n not in ("logit_scale", "logit_bias", "attn_mask")}
    return _renamed({name.removeprefix("text."): tensor for name, tensor in state.items()}, "text")


def is_openclip(state: StateDict) -> bool:
    """Whether the keys are open_clip's: attention there has one tensor for queries, keys and values."""
    return any(name.endswith("attn.in_proj_weight") for name in state)


def without_wrappers(state: StateDict) -> StateDict:
    """Keys without the prefixes of wrappers, in whatever order they are nested, and of a module that holds the model.

    Raises: KeyMismatch, if two tensors of other values come to one name.
    """
    before: StateDict = {}
    while state.keys() != before.keys():
        before, state = state, restyle(state, None, "the open_clip model").state
        if state and all(name.startswith("model.") for name in state):
            state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return state


def _renamed(state: StateDict, tower: str) -> StateDict:
    renamed: StateDict = {}
    for name, tensor in state.items():
        tensor = tensor.float()
        block = _RESBLOCK.fullmatch(name)
        if block is None:
            stem, dot, rest = name.rpartition(".")
            top = _TOP[tower]
            target = top.get(name) or (f"{top[stem]}{dot}{rest}" if stem in top else name)
            renamed[target] = tensor.T.contiguous() if name in ("proj", "text_projection") else tensor
            continue
        layer = f"{tower}_model.encoder.layers.{block[1]}"
        stem, _, kind = block[2].rpartition(".")
        if block[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{part}_proj.{kind.removeprefix('in_proj_')}"] = third.clone()
        else:
            renamed[f"{layer}.{_BLOCK[stem]}.{kind}" if stem in _BLOCK else name] = tensor
    return renamed


def _common(tower: Mapping[str, Any], width: int, facts: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """What both towers say in the same way; refuses settings that change what is computed."""
    known = _SIZES | _OWN[kind] | _HARMLESS[kind]
    usual = {key: values.get(kind) for key, values in _USUAL.items()}
    strange = [
        f"{key}: {value}"
        for key, value in tower.items()
        if key not in known and not key.startswith("timm_") and value not in (None, False, "default", usual.get(key))
    ]
    if strange:
        raise CheckpointError(f"the {kind} tower in {where} has {', '.join(strange)}; {_ONLY[kind]}")
    width = tower.get("width", width)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * tower.get("mlp_ratio", 4.0)),
        "num_hidden_layers": tower.get("layers", 12),
        "projection_dim": facts["embed_dim"],
        "hidden_act": _activation(tower, bool(facts.get("quick_gelu")), kind, where),
        "layer_norm_eps": (tower.get("norm_kwargs") or {}).get("eps", 1e-5),
        "dtype": "float32",
    }


def _activation(tower: Mapping[str, Any], quick: bool, kind: str, where: str) -> str:
    settings = tower.get("act_kwargs") or {}
    if quick:
        return "quick_gelu"
    if settings not in ({}, {"approximate": "tanh"}):
        raise CheckpointError(f"the {kind} tower in {where} has the activation settings {settings}; {_ONLY[kind]}")
    return "gelu_pytorch_tanh" if settings else "gelu"


def _side(value: Any, name: str, where: str) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise CheckpointError(f"{where} has {name} {value}; only squares are supported.")
    return int(sides.pop())
