"""A small language model, adapters of it, and changes of their configuration."""

import json
import warnings

import torch

SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(seed=0, **more):
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(vocab_size=20, pad_token_id=0, **{**SIZES, **more})
    return transformers.LlamaForCausalLM(config)


def save_adapter(model, folder, config):
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        wrapped = get_peft_model(model, config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(folder)
    return folder


def save_sound(root):
    """Saves a pretrained model in ``base`` and an adapter of it in ``lora``; returns the folder of both."""
    from peft import LoraConfig

    llama().save_pretrained(root / "base")
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    save_adapter(llama(), root / "lora", LoraConfig(**options))
    return root


def configure(**changes):
    """A change of entries of the configuration; ``...`` takes an entry away."""

    def change(folder):
        path = folder / "adapter_config.json"
        facts = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))

    return change
