"""The embedded backbones by name, and what their fine-tunes start from."""

from __future__ import annotations

from fusionlib.core import ParameterError
from fusionlib.zoo import backbone, dense, gpt2, names, t5
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.recipe import L_LORA, get_recipe

_MAKERS = {
    "tiny-clip": backbone.tiny_clip,
    "tiny-gpt2": gpt2.tiny_gpt2,
    "tiny-t5": t5.tiny_t5,
    "tiny-nyu": dense.tiny_nyu,
}
_HASHES = {
    "tiny-clip": backbone.tiny_clip_hash,
    "tiny-gpt2": gpt2.tiny_gpt2_hash,
    "tiny-t5": t5.tiny_t5_hash,
    "tiny-nyu": dense.tiny_nyu_hash,
}
_MODALITY = {"tiny-clip": "image", "tiny-gpt2": "text", "tiny-t5": "text", "tiny-nyu": "scene"}
_TASKS = {"image": names.IMAGE_TASKS, "text": names.TEXT_TASKS, "scene": names.SCENE_TASKS}


def embedded_backbone(name: str, tuning: str = "full") -> Backbone:
    """The backbone of this name, one of ``names.EMBEDDED_BACKBONES``; for "l-lora", linearised in its adapter."""
    plain = _MAKERS[name]()
    if tuning != L_LORA or not isinstance(plain, backbone.ClipBackbone):
        return plain
    from fusionlib.zoo.l_lora import linearized

    return linearized(plain, get_recipe(L_LORA))


def start_hash(name: str) -> str:
    """Hash of the files that the fine-tunes of a backbone start from."""
    return _HASHES[name]()


def check_readable(name: str, tasks: tuple[str, ...]) -> None:
    """Raise ParameterError if an embedded backbone can't read some of the embedded tasks."""
    fitting = _TASKS[_MODALITY[name]]
    odd = [task for task in tasks if task not in fitting]
    if odd:
        sets = [key for key, members in names.SETS.items() if set(members) <= set(fitting)]
        raise ParameterError(
            f"{name} reads {_MODALITY[name]}s, which {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} not made of. "
            f"Its tasks are {', '.join(fitting)}; sets of them: {', '.join(sets)}."
        )
