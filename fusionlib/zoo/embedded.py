"""The embedded backbones by name, and what their fine-tunes start from."""

from __future__ import annotations

from fusionlib.core import ParameterError
from fusionlib.zoo import backbone, gpt2, names
from fusionlib.zoo.backbone import Backbone

_MODALITY = {"tiny-clip": "image", "tiny-gpt2": "text"}


def embedded_backbone(name: str) -> Backbone:
    """The backbone of this name, one of ``names.EMBEDDED_BACKBONES``."""
    return gpt2.tiny_gpt2() if name == "tiny-gpt2" else backbone.tiny_clip()


def start_hash(name: str) -> str:
    """Hash of the files that the fine-tunes of a backbone start from."""
    return gpt2.tiny_gpt2_hash() if name == "tiny-gpt2" else backbone.tiny_clip_hash()


def check_readable(name: str, tasks: tuple[str, ...]) -> None:
    """Raise ParameterError if an embedded backbone can't read some of the embedded tasks."""
    fitting = names.TEXT_TASKS if _MODALITY[name] == "text" else names.IMAGE_TASKS
    odd = [task for task in tasks if task not in fitting]
    if odd:
        sets = [key for key, members in names.SETS.items() if set(members) <= set(fitting)]
        raise ParameterError(
            f"{name} reads {_MODALITY[name]}s, which {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} not made of. "
            f"Its tasks are {', '.join(fitting)}; sets of them: {', '.join(sets)}."
        )
