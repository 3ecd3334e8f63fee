"""What transformers knows of the names of an architecture, which is built without memory, on the meta device."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fusionlib.zoo.quiet import silent_transformers
from fusionlib.zoo.weights import read_config

# constants that older versions stored and that a constructor computes; looked for among unknown names alone
_CONSTANTS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|causal_mask"
    r"|attn_mask|attention_mask|relative_position_index)$"
)


@dataclass(frozen=True)
class Architecture:
    """What transformers knows of the names of one architecture.

    Attributes:
        name: the class.
        names: of its state dict.
        ties: second name -> first name of one tensor.
        constants: matches names that files may hold and the class does not store.
        model: the class on the meta device.
    """

    name: str
    names: frozenset[str]
    ties: Mapping[str, str]
    constants: re.Pattern[str]
    model: Any = field(repr=False)


def architecture_in(folder: Path) -> Architecture | None:
    """The architecture that ``config.json`` of a folder names; None if there is none that transformers has.

    Raises: CheckpointError, if config.json is no JSON object.
    """
    if not (folder / "config.json").exists():
        return None
    listed = read_config(folder).get("architectures")
    name = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    from transformers import AutoConfig

    try:
        with silent_transformers():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return architecture(config, name)
    except Exception:  # a configuration of anyone: whatever transformers makes of it, it has no such architecture
        return None


def architecture(config: Any, name: str = "", tied: bool | None = None) -> Architecture | None:
    """What transformers knows of a configuration's architecture; None if it has no such class.

    Args:
        config: from transformers.
        name: of the class; empty or unknown means the bare backbone.
        tied: whether embeddings are tied, where it differs from what the configuration says.
    """
    import transformers

    bare = transformers.AutoModel._model_mapping.get(type(config), None)
    bare = bare[0] if isinstance(bare, tuple) else bare
    cls = getattr(transformers, name, bare) if name else bare
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        return None
    if tied is not None:
        config = copy.deepcopy(config)
        config.tie_word_embeddings = tied
    with silent_transformers(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: Any = cls(config)
    names = frozenset(model.state_dict())
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers() if name not in names}
    patterns = [*sorted(model._keys_to_ignore_on_load_unexpected or ()), _CONSTANTS.pattern]
    patterns += [rf"(^|\.){re.escape(name)}$" for name in sorted(buffers)]
    return Architecture(
        name=cls.__name__,
        names=names,
        ties=dict(model.all_tied_weights_keys),
        constants=re.compile("|".join(f"(?:{pattern})" for pattern in patterns)),
        model=model,
    )


def tied_otherwise(known: Architecture, folder: Path) -> Architecture:
    """The same architecture, but with embeddings tied or not as ``config.json`` of a fine-tune says."""
    if not (folder / "config.json").is_file():
        return known
    tied = read_config(folder).get("tie_word_embeddings")
    if not isinstance(tied, bool) or tied == getattr(known.model.config, "tie_word_embeddings", tied):
        return known
    return architecture(known.model.config, known.name, tied) or known


def belongs(name: str, known: Architecture) -> bool:
    """Whether a name that the architecture has not lies in one of its parts, as a layer too many does."""
    from transformers.core_model_loading import apply_renamings

    firsts = {known.model.base_model_prefix, *(each.partition(".")[0] for each in known.names)}
    return any(each.partition(".")[0] in firsts for each in (name, apply_renamings(name, transforms(known)[0])))


def transforms(known: Architecture) -> tuple[list[Any], list[Any]]:
    """The renamings and the conversions of shapes that ``from_pretrained`` applies to files of an architecture."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    mapping = get_model_conversion_mapping(known.model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    return renamings, [entry for entry in mapping if isinstance(entry, WeightConverter)]
