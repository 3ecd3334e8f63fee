"""Text-to-text models: T5 as it was published or as it ships here, scored by the likelihood of each answer."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError, StateDict
from fusionlib.ops.modules import Ensemble, output_tensor, predict
from fusionlib.zoo import prompts
from fusionlib.zoo.asking import Answers, Questions
from fusionlib.zoo.backbone import Backbone, GivenHead
from fusionlib.zoo.files import TEXT, hash_file
from fusionlib.zoo.losses import Loss
from fusionlib.zoo.reading import Batch
from fusionlib.zoo.task import Task

FOLDER = TEXT / "tiny-t5"
LONGEST = 72


class AnswerHead(nn.Module):
    """Scores of classes: how likely a model says the answer of each, its end token included.

    It learns nothing and holds no weights, only which tokens the answers are made of. The score is the logarithm of
    the probability of the whole answer, a sum over its tokens: an answer of several tokens is not favoured and not
    punished beyond what the model gives it, and the class with the highest score is the likeliest thing to be said.

    Args:
        answers: of the task's classes.
    """

    targets: Tensor
    owner: Tensor

    def __init__(self, answers: Answers):
        super().__init__()
        self.answers = answers
        self.register_buffer("targets", answers.targets)
        self.register_buffer("owner", nn.functional.one_hot(answers.owner).float())

    def forward(self, features: Tensor, batch: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits over the vocabulary at each place of the answers, (B, N, vocabulary), to (B, classes) scores."""
        wanted = self.targets.expand(len(features), -1)[..., None]
        log_p = features.gather(-1, wanted)[..., 0] - features.logsumexp(dim=-1)
        return log_p @ self.owner


@dataclass(frozen=True)
class T5Backbone(Backbone):
    """A ``T5ForConditionalGeneration``, all of it fused; a task is a prompt, and its classes are answers.

    ``state`` has the embedding under each of its names, sharing storage, as the module's own state dict has; see
    :func:`all_names`. ``preprocess`` holds the prompts.
    """

    metric: ClassVar[str] = "exact_match"

    preprocess: Questions

    @property
    def dim(self) -> int:
        """Size of the vocabulary: a model's output are logits over it."""
        return self.config.vocab_size

    def module(self) -> nn.Module:
        """A new model, with whatever weights; its output layer is its own where the weights have one."""
        from transformers import T5ForConditionalGeneration

        model = T5ForConditionalGeneration(self.config)
        shared = self.state["shared.weight"].data_ptr()
        if self.state["lm_head.weight"].data_ptr() != shared:  # version 1.1 and Flan; the library ties it always
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    def complete(self, state: StateDict) -> StateDict:
        """See :func:`all_names`."""
        return all_names(state)

    def head(self, task: Task, given: GivenHead) -> AnswerHead:
        """The answers of the task; ParameterError for a head that was given, or for a task without a prompt."""
        if given is not None:
            raise ParameterError(
                f"a head was given for task {task.name!r}, but {self.name} answers in words and has no heads. Leave "
                "heads= out."
            )
        return AnswerHead(self.preprocess.answers(task))

    def loss(self, task: Task, head: nn.Module) -> Loss:
        """Mean over tokens of the right answers of -log p, what text-to-text models are trained with."""
        assert isinstance(head, AnswerHead)
        lengths = head.owner.sum(dim=0)

        def loss(scores: Tensor, labels: Tensor) -> Tensor:
            return -scores.gather(1, labels[:, None]).sum() / lengths[labels].sum()

        return loss

    def words(self, head: nn.Module) -> tuple[str, ...]:
        """The answers that a head of this kind scores."""
        assert isinstance(head, AnswerHead)
        return head.answers.words

    def answer(self, model: nn.Module, head: nn.Module, batch: Batch) -> tuple[Tensor, list[str]]:
        """Scores (B, classes) of the answers, and what the model says by itself, from one pass of each encoder."""
        if isinstance(model, Ensemble) and not model.batched:
            outputs = [member(**batch) for member in model.members]
            scores = model.combine(head, torch.stack([output.logits for output in outputs]), batch)
            return scores, self.say(model, head, batch, [output.encoder_last_hidden_state for output in outputs])
        if isinstance(model, Ensemble):
            return predict(model, head, batch), self.say(model, head, batch)
        output = model(**batch)
        return head(output.logits, batch), self.say(model, head, batch, [output.encoder_last_hidden_state])

    @torch.no_grad()
    def say(
        self, model: nn.Module, head: nn.Module, batch: Batch, encoded: Sequence[Tensor] | None = None
    ) -> list[str]:
        """What a model says to each question when it always takes the likeliest token.

        Args:
            model: of this kind, or an ensemble of such.
            head: of the task; as many tokens are said as its longest answer has, since a longer one is none of them.
            batch: B questions.
            encoded: what the encoder of the model, or of every member, made of them, each (B, L, dim), if known.
        Returns: B texts.
        """
        assert isinstance(head, AnswerHead)
        following = _following(model, batch, encoded)
        start, end = self.preprocess.start, self.preprocess.end
        said = batch["input_ids"].new_full((len(batch["input_ids"]), 1), start)
        for _ in range(head.answers.longest):
            said = torch.cat([said, following(said).argmax(dim=-1, keepdim=True)], dim=1)
            if bool((said[:, 1:] == end).any(dim=1).all()):
                break
        return [self.preprocess.say(row) for row in said[:, 1:].tolist()]


def _following(model: nn.Module, batch: Batch, encoded: Sequence[Tensor] | None) -> Callable[[Tensor], Tensor]:
    """From what was said, token ids (B, n), to logits of the next token, (B, vocabulary)."""
    question = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if encoded is None:
        return lambda said: output_tensor(model(**question, decoder_input_ids=said))[:, -1]
    mask = question["attention_mask"]
    members = list(model.members) if isinstance(model, Ensemble) else [model]

    def following(said: Tensor) -> Tensor:
        each = [
            member(attention_mask=mask, encoder_outputs=(states,), decoder_input_ids=said).logits[:, -1]
            for member, states in zip(members, encoded, strict=True)
        ]
        return (
            model.combine(lambda logits, _: logits, torch.stack(each), batch)
            if isinstance(model, Ensemble)
            else each[0]
        )

    return following


def all_names(state: StateDict) -> StateDict:
    """A T5's weights under every name that its module has for them; files leave out names of tied tensors.

    Args:
        state: with ``shared.weight``, or with another name of the embedding.
    Returns: the names and tensors given, and the missing names of the embedding, sharing its storage. An
        ``lm_head.weight`` that differs from the embedding stays a tensor of its own.
    Raises: ParameterError, if there is no embedding.
    """
    embedding = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    shared = next((state[name] for name in embedding if name in state), None)
    if shared is None:
        raise ParameterError(f"these weights hold no embedding of a T5: one of {', '.join(embedding)} is needed.")
    output = state.get("lm_head.weight", shared)
    tied = output is shared or torch.equal(output, shared)
    named = {**state, **dict.fromkeys(embedding, shared)}
    return {**named, "lm_head.weight": shared if tied else output}


def tiny_t5() -> T5Backbone:
    """The text-to-text model that ships with the package: two million parameters, 3 + 3 layers, 128 wide."""
    from safetensors.torch import load_file
    from transformers import T5Config

    facts = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    weights = {name: tensor.float() for name, tensor in load_file(FOLDER / "model.safetensors").items()}
    return T5Backbone(
        name="tiny-t5",
        config=T5Config.from_dict({**facts, "dtype": "float32"}),
        state=all_names(weights),
        preprocess=Questions.of(TEXT / "tokenizer.json", LONGEST, facts, prompts.EMBEDDED),
    )


@functools.cache
def tiny_t5_hash() -> str:
    """Hash of what the fine-tunes of tiny-t5 start from: base weights, tokenizer, and how it is asked."""
    import hashlib

    asked = hashlib.sha256(repr(prompts.EMBEDDED).encode()).hexdigest()
    return hash_file(FOLDER / "model.safetensors")[:32] + hash_file(TEXT / "tokenizer.json")[:32] + asked[:32]
