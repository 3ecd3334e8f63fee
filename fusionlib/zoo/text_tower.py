"""Zero-shot heads: class names put into prompts and embedded by CLIP's text tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError
from fusionlib.zoo.weights import check_keys, read_config, read_weights


@torch.inference_mode()
def zero_shot_weight(folder: Path, prompts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector per class: its prompts' embeddings normalised, averaged and normalised again.

    Args:
        folder: of a full ``CLIPModel`` with its tokenizer.
        prompts: class names as they are written in prompts.
        templates: each with one ``{}``.

    Returns: float32 (classes, dim), rows of length 1.
    Raises: CheckpointError if the tokenizer is missing; KeyMismatch if the text tower's keys are not its own.
    """
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

    facts = read_config(folder)
    wide = {"projection_dim": facts.get("projection_dim", 512), "dtype": "float32"}
    text = CLIPTextConfig.from_dict({**facts["text_config"], **wide})
    with torch.random.fork_rng(devices=[]):
        model = CLIPTextModelWithProjection(text).eval()
    state = {key: value for key, value in read_weights(folder).items() if key.startswith(("text_model.", "text_proj"))}
    state = {key: value for key, value in state.items() if not key.endswith("embeddings.position_ids")}
    check_keys(state, model.state_dict(), str(folder))
    model.load_state_dict(state)
    # without these files transformers makes an empty tokenizer, which knows no word, and says nothing
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer for zero-shot heads: neither tokenizer.json nor vocab.json. Save the "
            "CLIPTokenizer there, or pass heads=."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in prompts:
        tokens = tokenizer([template.format(prompt) for template in templates], padding=True, return_tensors="pt")
        each = nn.functional.normalize(model(**tokens).text_embeds, dim=-1)
        rows.append(nn.functional.normalize(each.mean(dim=0), dim=-1))
    return torch.stack(rows).clone()
