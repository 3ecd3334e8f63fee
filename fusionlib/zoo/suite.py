"""``load_suite``: one call for the embedded suite and for a user's own models and data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fusionlib.core import ParameterError, StateDict, suggest
from fusionlib.zoo import names
from fusionlib.zoo.backbone import Backbone, ClipBackbone, GivenHead
from fusionlib.zoo.checkpoints import Checkpoint
from fusionlib.zoo.files import hash_tensors
from fusionlib.zoo.gpt2 import Gpt2Backbone
from fusionlib.zoo.hub import loading
from fusionlib.zoo.l_lora import LinearizedClip
from fusionlib.zoo.reading import Batch
from fusionlib.zoo.recipe import L_LORA
from fusionlib.zoo.start import read_start, read_tasks
from fusionlib.zoo.suite_types import Suite, SuiteSpec
from fusionlib.zoo.t5 import T5Backbone
from fusionlib.zoo.task import Task
from fusionlib.zoo.task_entries import unpack

__all__ = ["Batch", "Suite", "SuiteSpec", "load_suite"]

Paths = Mapping[str, str | PathLike[str]]


def load_suite(
    backbone: str | PathLike[str] = "tiny-clip",
    tasks: str | Iterable[str] | Mapping[str, Any] = "tiny8",
    *,
    tuning: str = "full",
    seed: int = 0,
    device: str = "auto",
    checkpoints: Paths | None = None,
    heads: Mapping[str, GivenHead] | None = None,
    multitask: bool | None = None,
    progress: bool = True,
) -> Suite:
    """Load a pretrained model, its fine-tunes, their heads and data.

    The embedded suites are made at first use, the published ones fetched from the hub.

    Args:
        backbone: "tiny-clip", "tiny-gpt2", "tiny-t5", "tiny-nyu", a published one ("clip-vit-base-patch32", "gpt2",
            see ``data/hub.yaml``), a local folder, or a hub id, of a CLIP vision model with projection or a full CLIP;
            or open_clip's: "hf-hub:...", "local-dir:...", "open_clip:architecture:file"; or of any model that has
            classifiers.
        tasks: a named set ("tiny8", "tiny-unseen"; of tiny-gpt2 "tiny-text7", of tiny-t5 "tiny-text5", of tiny-nyu
            "tiny-nyu3"; published "ta8", "tall20", "glue7"), a list of task names, or own task -> Parquet or
            imagefolder path, hub id of a data set, or ``{"data": ..., "checkpoint": ..., "head": ...}``.
        tuning: "full", "lora", "l-lora" (adapters of models that are linearised in them), or "none" (no
            fine-tunes: data and heads alone).
        seed: of the embedded fine-tunes, 0 or greater; it only labels your own.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        checkpoints: task -> local folder, file or hub id of your own fine-tunes, full or PEFT adapters; one per task.
        heads: task -> tensor (classes, dim), all tensors by name, or safetensors file; where absent, embedded or
            zero-shot heads, or, of tiny-gpt2 and tiny-nyu, those trained with the fine-tunes.
        multitask: the jointly trained model: None loads it if it was made, True makes it, False leaves it out.
        progress: show a display while something is made.

    Raises: UnknownName, ParameterError, CheckpointError, KeyMismatch: the sentence says what to do.
    """
    where = names.resolve_device(device)
    names.check_tuning(tuning)
    names.check_seed(seed)
    tasks, checkpoints, heads = unpack(tasks, checkpoints, heads)
    asked = loading.asked(backbone, tasks)
    chosen, tasks_name = ((), asked.tasks_name) if asked.names else read_tasks(tasks)
    ordered = asked.names or tuple(task.name for task in chosen)
    for title, mapping in (("checkpoints", checkpoints), ("heads", heads)):
        for name in mapping or {}:
            if name not in ordered:
                raise ParameterError(
                    f"{title} names {name!r}, which is not a task of the suite.{suggest(name, ordered)}"
                )
    wanted = tuning if asked.names and asked.family and checkpoints is None else "none"
    published, base, chosen = read_start(backbone, chosen, asked, tuning, wanted, progress=progress)
    given: dict[str, Any] = {name: (heads or {}).get(name) for name in ordered}
    made = {} if base.learns_heads else {task.name: base.head(task, given[task.name]) for task in chosen}
    finetuned: dict[str, StateDict] = {}
    identities: list[str] = []
    joint: StateDict | None = None
    if checkpoints is not None:
        if tuning == "none":
            raise ParameterError(
                'tuning="none" means no fine-tunes, but checkpoints= names some. Leave out one of the two.'
            )
        if isinstance(base, LinearizedClip):
            raise ParameterError(
                'tuning="l-lora" is for the embedded fine-tunes: adapters of yours are merged into weights, which a '
                "linearised adapter can't be. Leave out checkpoints, or merge with tuning='lora'."
            )
        if multitask:
            raise ParameterError("multitask=True trains the embedded backbone jointly; with checkpoints= leave it out.")
        finetuned, theirs = _own(base, chosen, checkpoints)
        given = {**theirs, **{name: head for name, head in given.items() if head is not None}}
        identities = [hash_tensors(state) for state in finetuned.values()]
    elif published and published.finetuned:
        if multitask:
            raise ParameterError(
                "multitask=True trains an embedded backbone jointly; of published suites, leave it out."
            )
        finetuned = published.finetuned
        identities = [hash_tensors(state) for state in finetuned.values()]
        given = {**published.heads, **{name: head for name, head in given.items() if head is not None}}
    elif base.name in names.EMBEDDED_BACKBONES and all(task.embedded for task in chosen):
        loaded, joint = _embedded(base, ordered, tuning, seed, multitask, progress)
        finetuned = {name: checkpoint.state for name, checkpoint in loaded.items()}
        identities = [checkpoint.identity for checkpoint in loaded.values()]
        given = {name: checkpoint.head for name, checkpoint in loaded.items()} | {
            name: head for name, head in given.items() if head is not None
        }
    elif tuning != "none" or multitask:
        raise _no_finetunes(base, chosen)
    if base.learns_heads:
        made = {task.name: base.head(task, given.get(task.name)) for task in chosen}
    return Suite(
        spec=SuiteSpec(base.name, ordered, tasks_name, tuning, seed),
        tasks=chosen,
        pretrained=base.state,
        finetuned=MappingProxyType(finetuned),
        heads=MappingProxyType({name: head.to(where) for name, head in made.items()}),
        device=where,
        fingerprint=fingerprint_of(base, chosen, made, identities),
        backbone=base,
        multitask=joint,
    )


def _own(base: Backbone, tasks: tuple[Task, ...], checkpoints: Paths) -> tuple[dict[str, StateDict], dict[str, Any]]:
    """Weights and, where heads are learned, heads of a user's fine-tunes."""
    if isinstance(base, ClipBackbone):
        from fusionlib.zoo.own_models import own_finetuned

        return own_finetuned(base, [task.name for task in tasks], checkpoints), {}
    if isinstance(base, (Gpt2Backbone, T5Backbone)):
        return loading.own_finetuned(base, tasks, checkpoints)
    from fusionlib.zoo.classifiers import ClassifierBackbone
    from fusionlib.zoo.own_classifiers import own_classifiers

    if not isinstance(base, ClassifierBackbone):
        raise ParameterError(
            f"checkpoints= is for CLIP models, language models and classifiers; {base.name} has fine-tunes that are "
            "made for it. Leave it out."
        )
    return own_classifiers(base, tasks, checkpoints)


def _no_finetunes(base: Backbone, tasks: tuple[Task, ...]) -> ParameterError:
    """What to say where nobody gave fine-tunes and no recipe of ours can make them."""
    own = [task.name for task in tasks if not task.embedded]
    what = f"your own tasks ({', '.join(own)})" if own else f"the backbone {base.name!r}"
    return ParameterError(
        f"there are no fine-tuned models for {what}, and only those of embedded tasks and backbones are made by "
        "themselves. Pass checkpoints={task: folder or hub id}; `fusionlib train --params X.yaml --task NAME` makes "
        'such a folder; or tuning="none" for the pretrained model alone.'
    )


def _embedded(
    base: Backbone, tasks: tuple[str, ...], tuning: str, seed: int, multitask: bool | None, progress: bool
) -> tuple[dict[str, Checkpoint], StateDict | None]:
    """Fine-tunes of an embedded backbone, made where missing, and the weights of the joint model."""
    from fusionlib.zoo import checkpoints
    from fusionlib.zoo.job import joint_job, plan
    from fusionlib.zoo.preparing import make_missing
    from fusionlib.zoo.recipe import JOINT, offered

    if tuning == L_LORA and multitask:
        raise ParameterError('the jointly trained model has no adapter; with tuning="l-lora" leave multitask out.')
    make_missing(plan(base.name, tasks, tuning, seed, bool(multitask)), progress=progress)
    jobs = plan(base.name, tasks, tuning, seed, multitask=False)
    loaded = {job.label: checkpoints.load(job, base) for job in jobs}
    if JOINT not in offered(base.name) or tuning == L_LORA:  # the joint model is one of weights, not of adapters
        return loaded, None
    joint = joint_job(base.name, tasks, seed)
    wanted = multitask or (multitask is None and joint.folder.exists())
    return loaded, checkpoints.load(joint, base).state if wanted else None


def fingerprint_of(base: Backbone, tasks: Iterable[Task], heads: Mapping[str, nn.Module], identities: list[str]) -> str:
    """Hash of everything that a suite's numbers depend on; ``identities`` are those of its fine-tunes."""
    digest = hashlib.sha256()
    digest.update(f"{hash_tensors(base.weights)} {base.preprocess} {base.config.to_json_string()}\n".encode())
    for task in tasks:
        head = heads[task.name]
        scale = torch.tensor(getattr(head, "logit_scale", 1.0))
        scaled = {**head.state_dict(), "scale": scale}
        splits = [(name, split.sha256, split.rows) for name, split in task.splits.items()]
        digest.update(f"{task.name} {task.classes} {splits} {task.metric} {hash_tensors(scaled)}\n".encode())
    digest.update("\n".join(identities).encode())
    return digest.hexdigest()
