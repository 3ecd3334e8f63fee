"""L-LoRA as the published adapters were made: every adapted layer is linearised by itself, and trained so."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from fusionlib.ops.linearized import Linearized, linearize_layers
from fusionlib.zoo.adapters import ADAPTER_CONFIG, wrap
from fusionlib.zoo.backbone import ClipBackbone
from fusionlib.zoo.l_lora import START_SEED
from fusionlib.zoo.linearized_adapters import WEIGHTS
from fusionlib.zoo.recipe import Recipe

_LORA = ("lora_A.default.weight", "lora_B.default.weight")


@dataclass(frozen=True)
class LayerLinearizedClip(ClipBackbone):
    """A CLIP backbone whose fine-tunes train LoRA through layers that are linearised each by itself."""

    def start(self, recipe: Recipe) -> nn.Module:
        """A new module under LoRA, linear in each layer's adapter; nothing but the adapters can be trained.

        The start of the adapters is the same for all tasks and seeds, as of every suite of linearised fine-tunes.
        """
        from peft import LoraConfig

        config = LoraConfig(r=recipe.rank or 1, lora_alpha=recipe.alpha, target_modules=list(recipe.targets))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(START_SEED)
            adapted = wrap(self.build(), config)
        layers = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
        return linearize_layers(adapted, dict.fromkeys(layers, _LORA))


def layer_linearized(plain: ClipBackbone) -> LayerLinearizedClip:
    """The backbone for such fine-tunes of another one."""
    return LayerLinearizedClip(**{each.name: getattr(plain, each.name) for each in fields(ClipBackbone)})


def save_linearized(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a module from ``start``, and where they started, as the published ones are written."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Linearized):
            for index, key in enumerate(_LORA, start=2):  # after weight and bias of the layer below, which stay
                tensors[f"{name}.model.{key}"] = module.get_parameter(key).detach().contiguous()
                tensors[f"{name}.params0_values.{index}"] = module.start[key].contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    model.peft_config["default"].save_pretrained(folder)  # type: ignore[index, union-attr]
    assert (folder / ADAPTER_CONFIG).is_file()
