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


def configure(**changes):
    """A change of entries of the configuration; None takes an entry away."""

    def change(folder):
        path = folder / "adapter_config.json"
        facts = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))

    return change
