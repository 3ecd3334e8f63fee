"""The embedded backbones by name, and what their fine-tunes start from."""

from __future__ import annotations

from fusionlib.core import ParameterError
from fusionlib.zoo import backbone, gpt2, names
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.recipe import L_LORA, get_recipe

_MODALITY = {"tiny-clip": "image", "tiny-gpt2": "text"}


def embedded_backbone(name: str, tuning: str = "full") -> Backbone:
    """The backbone of this name, one of ``names.EMBEDDED_BACKBONES``; for "l-lora", linearised in its adapter."""
    if name == "tiny-gpt2":
        return gpt2.tiny_gpt2()
    plain = backbone.tiny_clip()
    if tuning != L_LORA:
        return plain
    from fusionlib.zoo.l_lora import linearized

    return linearized(plain, get_recipe(L_LORA))


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
