"""Zero-shot heads: class names put into prompts and embedded by CLIP's text tower."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.architectures import architecture
from fusionlib.zoo.files import check_writable, hash_tensors, home
from fusionlib.zoo.kept import keep, read_kept
from fusionlib.zoo.key_styles import restyle
from fusionlib.zoo.weights import check_keys, read_config, read_weights

if TYPE_CHECKING:
    from transformers import CLIPTextConfig


_BATCH = 256  # prompts that are read together
_FORMAT = 2  # raised when the same tower and prompts give other vectors, or a file of them is another


@dataclass(frozen=True)
class TextTower:
    """A text encoder and its tokenizer.

    Attributes:
        model: a ``CLIPTextModelWithProjection`` in evaluation mode.
        tokenize: texts to the keyword arguments of ``model``.
    """

    model: nn.Module
    tokenize: Callable[[list[str]], Mapping[str, Tensor]]

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the weights."""
        return hash_tensors(self.model.state_dict())


def kept_weight(tower: TextTower, prompts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """What ``zero_shot_weight`` gives, computed once for this content and kept under ``home()/cache/heads``.

    The text tower of a published CLIP reads thousands of prompts for a suite, which takes minutes without a GPU.
    """
    tokens = tower.tokenize(_texts(prompts, templates))
    described = {"ids": tokens["input_ids"], "sizes": torch.tensor([_FORMAT, len(prompts), len(templates)])}
    digest = hashlib.sha256(f"{tower.identity} {hash_tensors(described)}".encode()).hexdigest()
    path = home() / "cache" / "heads" / f"{digest[:32]}.safetensors"
    kept = read_kept(path, "kept heads")
    if kept is not None:
        return kept["weight"]
    check_writable(path.parent)
    weight = _weight(tower, tokens, len(prompts))
    keep(path, {"weight": weight})
    return weight


def zero_shot_weight(tower: TextTower, prompts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector per class: its prompts' embeddings normalised, averaged and normalised again.

    Args:
        prompts: class names as they are written in prompts.
        templates: each with one ``{}``.

    Returns: float32 (classes, dim), rows of length 1.
    """
    return _weight(tower, tower.tokenize(_texts(prompts, templates)), len(prompts))


@torch.inference_mode()
def _weight(tower: TextTower, tokens: Mapping[str, Tensor], classes: int) -> Tensor:
    embedded = []
    for start in range(0, len(tokens["input_ids"]), _BATCH):
        batch = {name: values[start : start + _BATCH] for name, values in tokens.items()}
        embedded.append(nn.functional.normalize(tower.model(**batch).text_embeds, dim=-1))
    each = torch.cat(embedded).unflatten(0, (classes, -1))
    return nn.functional.normalize(each.mean(dim=1), dim=-1).clone()


def _texts(prompts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All templates of the first class, then of the next."""
    return [template.format(prompt) for prompt in prompts for template in templates]


def read_text_tower(folder: Path) -> TextTower:
    """The text tower of a full ``CLIPModel`` that was saved with its tokenizer.

    Raises: CheckpointError if the tokenizer is missing; KeyMismatch if the text tower's keys are not its own.
    """
    from transformers import AutoTokenizer, CLIPTextConfig

    facts = read_config(folder)
    wide = {"projection_dim": facts.get("projection_dim", 512), "dtype": "float32"}
    config: CLIPTextConfig = CLIPTextConfig.from_dict({**facts["text_config"], **wide})
    known = architecture(config, "CLIPTextModelWithProjection")
    state = restyle(read_weights(folder), known, str(folder)).state
    state = {key: value for key, value in state.items() if key.startswith(("text_model.", "text_proj"))}
    model = build_text_model(config, state, str(folder))
    # without these files transformers makes an empty tokenizer, which knows no word, and says nothing
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer for zero-shot heads: neither tokenizer.json nor vocab.json. Save the "
            "CLIPTokenizer there, or pass heads=."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return TextTower(model, lambda texts: tokenizer(texts, padding=True, return_tensors="pt"))


def build_text_model(config: CLIPTextConfig, state: StateDict, where: str) -> nn.Module:
    """A ``CLIPTextModelWithProjection`` with these weights, in evaluation mode; KeyMismatch if they are not its own."""
    from transformers import CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        model = CLIPTextModelWithProjection(config).eval()
    check_keys(state, model.state_dict(), where)
    model.load_state_dict(state)
    return model
