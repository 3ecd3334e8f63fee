"""Zero-shot heads: class names put into prompts and embedded by CLIP's text tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.weights import check_keys, read_config, read_weights

if TYPE_CHECKING:
    from transformers import CLIPTextConfig


class TextTower(NamedTuple):
    """A text encoder and its tokenizer.

    Attributes:
        model: a ``CLIPTextModelWithProjection`` in evaluation mode.
        tokenize: texts to the keyword arguments of ``model``.
    """

    model: nn.Module
    tokenize: Callable[[list[str]], Mapping[str, Any]]


@torch.inference_mode()
def zero_shot_weight(tower: TextTower, prompts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector per class: its prompts' embeddings normalised, averaged and normalised again.

    Args:
        prompts: class names as they are written in prompts.
        templates: each with one ``{}``.

    Returns: float32 (classes, dim), rows of length 1.
    """
    rows = []
    for prompt in prompts:
        tokens = tower.tokenize([template.format(prompt) for template in templates])
        each = nn.functional.normalize(tower.model(**tokens).text_embeds, dim=-1)
        rows.append(nn.functional.normalize(each.mean(dim=0), dim=-1))
    return torch.stack(rows).clone()


def read_text_tower(folder: Path) -> TextTower:
    """The text tower of a full ``CLIPModel`` that was saved with its tokenizer.

    Raises: CheckpointError if the tokenizer is missing; KeyMismatch if the text tower's keys are not its own.
    """
    from transformers import AutoTokenizer, CLIPTextConfig

    facts = read_config(folder)
    wide = {"projection_dim": facts.get("projection_dim", 512), "dtype": "float32"}
    state = {key: value for key, value in read_weights(folder).items() if key.startswith(("text_model.", "text_proj"))}
    state = {key: value for key, value in state.items() if not key.endswith("embeddings.position_ids")}
    model = build_text_model(CLIPTextConfig.from_dict({**facts["text_config"], **wide}), state, str(folder))
    # without these files transformers makes an empty tokenizer, which knows no word, and says nothing
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer for zero-shot heads: neither tokenizer.json nor vocab.json. Save the "
            "CLIPTokenizer there, or pass heads=."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TextTower(model, lambda texts: tokenizer(texts, padding=True, return_tensors="pt"))


def build_text_model(config: CLIPTextConfig, state: StateDict, where: str) -> nn.Module:
    """A ``CLIPTextModelWithProjection`` with these weights, in evaluation mode; KeyMismatch if they are not its own."""
    from transformers import CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        model = CLIPTextModelWithProjection(config).eval()
    check_keys(state, model.state_dict(), where)
    model.load_state_dict(state)
    return model
