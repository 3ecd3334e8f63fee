"""A user's own classifiers of texts or pictures, taken apart: the backbone, to be fused, and each task's own head."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError, KeyMismatch, ParameterError, StateDict
from fusionlib.zoo.adapter_config import check_adapter
from fusionlib.zoo.adapter_merging import merge_into, say_about
from fusionlib.zoo.adapters import is_adapter, read_adapter
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.folders import load_complete
from fusionlib.zoo.heads import check_finite
from fusionlib.zoo.task import Task
from fusionlib.zoo.weights import check_keys

_TOLERANCE = 1e-4


class ClassifierHead(nn.Module):
    """What a classifier of transformers does after its backbone: its own code, fed with features.

    Args:
        model: the classifier; its backbone is taken out of it.
        order: for each class of the task, its row among the classifier's; None if they are the same.
    """

    def __init__(self, model: Any, order: Sequence[int] | None = None):
        super().__init__()
        setattr(model, model.base_model_prefix, _Given())
        self.rest, self.order = model, None if order is None else list(order)

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """Features and their batch to (B, classes) logits."""
        given = getattr(self.rest, self.rest.base_model_prefix)
        given.features = features
        try:
            logits = self.rest(**batch).logits
        finally:
            given.features = None
        return logits if self.order is None else logits[:, self.order]


def whole(trunk: nn.Module, head: ClassifierHead) -> Any:
    """The classifier that a backbone and a head taken out of one make together; ``head`` can't be used afterwards."""
    setattr(head.rest, head.rest.base_model_prefix, trunk)
    return head.rest


class _Given(nn.Module):
    """Stands where the backbone was and answers with what the backbone said before."""

    features: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=self.features,  # type: ignore[arg-type]
            pooler_output=self.features,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class ClassifierBackbone(Backbone):
    """The backbone of classifiers of one architecture; their heads come with the fine-tunes and are never fused.

    Attributes:
        folder: of the pretrained model, into which adapters are merged.
        auto: the class of transformers that makes such classifiers.
    """

    learns_heads: ClassVar[bool] = True

    folder: Path = field(repr=False)
    auto: Any = field(repr=False)

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self.config.hidden_size

    def module(self) -> nn.Module:
        """A new backbone, with whatever weights."""
        return trunk(self.auto.from_config(self.config))

    def head(self, task: Task, given: Any) -> nn.Module:
        """The head that came with the task's checkpoint; ParameterError, if there is none."""
        if isinstance(given, ClassifierHead):
            return given
        raise ParameterError(
            f"there is no head for task {task.name!r}: heads of {self.name!r} come with its fine-tunes. Pass "
            f"checkpoints={{{task.name!r}: folder of a {self.auto.__name__.removeprefix('Auto')}}}."
        )

    def start_head(self, task: Task, seed: int) -> nn.Module:
        """A new head as transformers initialises it, with the task's classes as its labels."""
        config = copy.deepcopy(self.config)
        config.id2label = dict(enumerate(task.classes))
        config.label2id = {name: index for index, name in config.id2label.items()}
        config.update(self._padding())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ClassifierHead(self.auto.from_config(config))

    def classifier(self, folder: Path, task: Task) -> tuple[StateDict, nn.Module]:
        """The weights of the backbone and the head of a fine-tune, whole or a PEFT adapter with its head.

        Raises: CheckpointError, if it can't be read or its labels are not the task's classes; KeyMismatch.
        """
        if is_adapter(folder):
            check_adapter(folder)
            labels = len(task.classes)
            model: Any = load_complete(self.auto, self.folder, self.prefix, num_labels=labels, **self._padding())
            _check_head(model, folder, task)
            say_about(folder, self.name, merge_into(model, folder, repr(self.name)))
        else:
            model = load_complete(self.auto, folder, **self._padding())
        state = {key: value.detach() for key, value in model.base_model.state_dict().items()}
        check_keys(state, self.state, str(folder))
        head = ClassifierHead(model, _order(model.config, task, folder)).eval()
        check_finite(head.state_dict(), task)
        return {key: state[key] for key in self.state}, head

    @property
    def prefix(self) -> str:
        """What the backbone's weights begin with in a classifier."""
        return self.auto._model_mapping[type(self.config)].base_model_prefix + "."

    def _padding(self) -> dict[str, Any]:
        pad = getattr(self.preprocess, "pad", None)
        return {} if pad is None else {"pad_token_id": pad}


def trunk(model: Any) -> nn.Module:
    """The backbone of a classifier. Where it pools, as BERT's does, it answers with the pooled features."""
    base = model.base_model
    if getattr(base, "pooler", None) is not None:
        base.register_forward_hook(_pooled)
    return base


def _pooled(module: nn.Module, arguments: Any, output: Any) -> Tensor:
    return output.pooler_output


def check_divides(backbone: ClassifierBackbone, batch: Any) -> None:
    """Raise CheckpointError unless backbone and head, taken apart, say what the classifier says."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        whole: Any = backbone.auto.from_config(backbone.config).eval()
        for name, value in backbone._padding().items():
            setattr(whole.config, name, value)
        try:
            expected = whole(**batch).logits
            base = trunk(whole).eval()
            found = ClassifierHead(whole)(_features(base, batch), batch)
            same = found.shape == expected.shape and torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            same = False
    if not same:
        raise CheckpointError(
            f"a {type(whole).__name__} can't be taken apart into a backbone and a head: its head reads more than the "
            "backbone's last hidden states or pooled features. Merge such models with fl.merge."
        )


def _features(base: nn.Module, batch: Any) -> Tensor:
    from fusionlib.ops.modules import output_tensor

    return output_tensor(base(**batch))


def _check_head(model: Any, folder: Path, task: Task) -> None:
    """An adapter without a head would leave a random one, and one of another task another number of classes."""
    beside = [(name, value) for name, value in model.named_parameters() if not name.startswith(_inner(model))]
    held = read_adapter(folder)
    found = {name: next((held[key] for key in held if key.endswith(f".{name}")), None) for name, _ in beside}
    lacking = [name for name, tensor in found.items() if tensor is None]
    if lacking:
        raise KeyMismatch(
            f"the adapter in {folder} holds no head: {', '.join(lacking)} is missing. Train it with "
            'task_type="SEQ_CLS" or modules_to_save=["classifier"], so that the head is saved with it.'
        )
    shapes = [
        f"{name} is {tuple(tensor.shape)}, needed {tuple(value.shape)}"
        for name, value in beside
        if (tensor := found[name]) is not None and tensor.shape != value.shape
    ]
    if shapes:
        raise CheckpointError(
            f"the head of the adapter in {folder} is not one of task {task.name!r}, which has {len(task.classes)} "
            f"classes ({', '.join(task.classes[:10])}): {', '.join(shapes)}."
        )


def _inner(model: Any) -> str:
    return f"{model.base_model_prefix}."


def _order(config: Any, task: Task, folder: Path) -> list[int] | None:
    """Where each class of the task is among the labels of a checkpoint; None if they are in the same order."""
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    if len(labels) != len(task.classes):
        raise CheckpointError(
            f"the classifier in {folder} tells {len(labels)} classes apart, but task {task.name!r} has "
            f"{len(task.classes)} ({', '.join(task.classes[:10])})."
        )
    if all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        return None  # names that transformers makes up
    places = {_plain(label): index for index, label in enumerate(labels)}
    wanted = [_plain(name) for name in task.classes]
    if set(places) != set(wanted):
        raise CheckpointError(
            f"the classifier in {folder} has the labels {', '.join(labels[:10])}, but task {task.name!r} has the "
            f"classes {', '.join(task.classes[:10])}. Give both the same names, in the data or in config.json's "
            "id2label."
        )
    order = [places[name] for name in wanted]
    return None if order == list(range(len(order))) else order


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
