"""Published fine-tunes of GPT-2 as ``GPT2ForSequenceClassification``: the trunk is fused, each head is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.adapter_merging import merge_into, say_about
from fusionlib.zoo.adapters import is_adapter
from fusionlib.zoo.architectures import architecture
from fusionlib.zoo.files import hash_file
from fusionlib.zoo.gpt2 import Gpt2Backbone
from fusionlib.zoo.heads import HEADS, read_head
from fusionlib.zoo.key_styles import restyle
from fusionlib.zoo.task import Task
from fusionlib.zoo.texts import Tokens, read_tokenizer
from fusionlib.zoo.weights import check_keys, read_config, read_weights

if TYPE_CHECKING:
    from transformers import GPT2Config

_HEAD = "score.weight"
_LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class PlainTokens(Tokens):
    """Texts as these models were fine-tuned on them: of two the second follows the first, with nothing between.

    There is no end token either; the head reads the text's own last token. What is over is cut from the end of the
    longer text.
    """

    def read(self, task: Task, columns: Mapping[str, list[str]]) -> list[Tensor]:
        """Tokens of every example of a split, given by its columns."""
        encode = read_tokenizer(self.path, self.tokenizer).encode_batch
        parts = [columns["text"]] if "text" in columns else [columns["text_a"], columns["text_b"]]
        ids = [[each.ids for each in encode(list(texts), add_special_tokens=False)] for texts in parts]
        return [torch.tensor(self._joined(list(row))) for row in zip(*ids, strict=True)]

    def _joined(self, texts: list[list[int]]) -> list[int]:
        while sum(map(len, texts)) > self.longest:
            longer = max(range(len(texts)), key=lambda index: (len(texts[index]), index))
            texts[longer] = texts[longer][:-1]
        return [token for text in texts for token in text] or [self.end]


def read(pretrained: Path, models: Mapping[str, Path]) -> tuple[Gpt2Backbone, dict[str, StateDict], dict[str, Tensor]]:
    """(backbone, task -> weights, task -> weight of its head) of a GPT-2 and its fine-tunes.

    Args:
        pretrained: folder of a ``GPT2Model`` or ``GPT2LMHeadModel``, with its tokenizer.
        models: task -> folder of a ``GPT2ForSequenceClassification``.

    Raises: CheckpointError, KeyMismatch.
    """
    from transformers import GPT2Config, GPT2Model

    facts = read_config(pretrained)
    if facts.get("model_type") != "gpt2":
        raise CheckpointError(f"the model in {pretrained} is of type {facts.get('model_type')!r}, not 'gpt2'.")
    config = GPT2Config.from_dict({**facts, "dtype": "float32"})
    with torch.device("meta"):
        wanted = GPT2Model(config).state_dict()
    state = _trunk(read_weights(pretrained), config, pretrained)
    check_keys(state, wanted, str(pretrained))
    tokenizer = pretrained / "tokenizer.json"
    end = facts["eos_token_id"]
    base = Gpt2Backbone(
        name=str(pretrained),
        config=config,
        state={name: state[name].float() for name in wanted},
        preprocess=PlainTokens(hash_file(_there(tokenizer)), config.n_positions, end, end, tokenizer),
    )
    tuned = {task: read_finetuned(base, task, folder) for task, folder in models.items()}
    return base, {task: state for task, (state, _) in tuned.items()}, {task: head for task, (_, head) in tuned.items()}


def read_finetuned(base: Gpt2Backbone, task: str, folder: Path) -> tuple[StateDict, Tensor]:
    """(weights, weight of its head) of a fine-tune.

    Args:
        folder: of a ``GPT2ForSequenceClassification``, whole or a PEFT adapter of one, or of a ``GPT2Model`` with its
            head in ``heads.safetensors``.

    Raises: CheckpointError, KeyMismatch.
    """
    if is_adapter(folder):
        model = base.build()
        beside = merge_into(model, folder, repr(base.name))
        found = model.state_dict()
        say_about(folder, base.name, {name: tensor for name, tensor in beside.items() if name != _HEAD})
    else:
        found = restyle(read_weights(folder), architecture(base.config, "GPT2Model"), str(folder)).state
        beside = found
    if _HEAD in beside:
        head = beside[_HEAD].float()
    elif (folder / HEADS).is_file():
        head = read_head(folder / HEADS, task)
    else:
        raise CheckpointError(
            f"the fine-tune in {folder} has no head, {_HEAD}: it is no GPT2ForSequenceClassification. Pin the "
            "revision that is one (owner/name@commit)."
        )
    state = {name: tensor for name, tensor in found.items() if name not in (_HEAD, _LM_HEAD)}
    check_keys(state, base.state, str(folder))
    return {name: state[name].float() for name in base.state}, head


def _trunk(state: StateDict, config: GPT2Config, folder: Path) -> StateDict:
    """The keys of ``GPT2Model``, without the causal masks that older versions of transformers stored."""
    state = restyle(state, architecture(config, "GPT2Model"), str(folder)).state
    return {name: tensor for name, tensor in state.items() if name != _LM_HEAD}


def _there(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Save the tokenizer there: AutoTokenizer(...).save_pretrained(folder)."
        )
    return path
