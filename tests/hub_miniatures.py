"""Miniature checkpoints and data sets with random content, under the file names and keys of the published ones."""

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, disable_progress_bars
from PIL import Image as Pictures
from safetensors.torch import save

from fusionlib.zoo.hub import table

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}
TRAIN, TEST = 20, 6  # examples


disable_progress_bars()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_json(**facts) -> bytes:
    return json.dumps(facts).encode()


def clip(seed: int = 0) -> dict[str, bytes]:
    """A whole CLIP with tokenizer and processor, as openai's repositories hold it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    end = vocabulary["<|endoftext|>"]
    text = {**SIZES, "vocab_size": len(words), "max_position_embeddings": 128, "eos_token_id": end}
    text |= {"bos_token_id": end - 1, "pad_token_id": end}
    torch.manual_seed(0)  # one text tower for all, so that heads kept for one are those of the next
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.vision_model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        CLIPTokenizerFast(vocab=vocabulary, merges=[]).save_pretrained(folder)
        model.save_pretrained(folder)
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps({"size": 16, "crop_size": 16}))
        return files(Path(folder)) | {"flax_model.msgpack": b"not needed", "README.md": b"# CLIP"}


def clip_vision(seed: int, style: str) -> dict[str, bytes]:
    """A fine-tuned ``CLIPVisionModel``.

    Args:
        style: "bare" keys, "prefixed" by ``vision_model.``, the latter in "shards" or as "bin".
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    model = CLIPVisionModel(CLIPVisionConfig(**VISION))
    state = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    if style != "bare":
        state = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    config = as_json(**{**model.config.to_dict(), "architectures": ["CLIPVisionModel"]})
    return {"config.json": config, "training_args.bin": b"not to be read", **weights(state, style)}


def weights(state: dict[str, torch.Tensor], style: str) -> dict[str, bytes]:
    """Files of weights in one of the layouts that transformers writes."""
    state = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    if style == "bin":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return {"pytorch_model.bin": buffer.getvalue()}
    if style != "shards":
        return {"model.safetensors": save(state, {"format": "pt"})}
    names = sorted(state)
    parts = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    index = {"metadata": {}, "weight_map": {name: file for file, members in parts.items() for name in members}}
    shards = {file: save({name: state[name] for name in members}) for file, members in parts.items()}
    return {**shards, "model.safetensors.index.json": json.dumps(index).encode()}


def lora(
    targets: dict[str, tuple[int, int]], seed: int, base: str, prefix: str = "base_model.model."
) -> dict[str, bytes]:
    """A PEFT adapter of rank 2.

    Args:
        targets: module -> (width in, width out).
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (width, out) in targets.items():
        state[f"{prefix}{module}.lora_A.weight"] = torch.randn(2, width, generator=generator)
        state[f"{prefix}{module}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    config = adapter_config(base, sorted({module.rpartition(".")[2] for module in targets}))
    return {"adapter_config.json": config, "adapter_model.safetensors": save(state)}


def adapter_config(base: str, targets: list[str]) -> bytes:
    return as_json(
        base_model_name_or_path=base, peft_type="LORA", r=2, lora_alpha=4, target_modules=targets, lora_dropout=0.1,
        bias="none", task_type=None, inference_mode=True, fan_in_fan_out=False,
    )  # fmt: skip


def clip_targets() -> dict[str, tuple[int, int]]:
    width = SIZES["hidden_size"]
    return {
        f"encoder.layers.{layer}.self_attn.{kind}_proj": (width, width)
        for layer in range(SIZES["num_hidden_layers"])
        for kind in "qv"
    }


def l_lora(seed: int, base: str) -> dict[str, bytes]:
    """An adapter whose layers were linearised each by itself: A and B, and where they began, B at zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module, (width, out) in clip_targets().items():
        name = f"base_model.model.{module}"
        state[f"{name}.model.lora_A.default.weight"] = torch.randn(2, width, generator=generator)
        state[f"{name}.model.lora_B.default.weight"] = torch.randn(out, 2, generator=generator)
        state[f"{name}.params0_values.2"] = torch.randn(2, width, generator=generator)
        state[f"{name}.params0_values.3"] = torch.zeros(out, 2)
    return {
        "adapter_config.json": adapter_config(base, ["q_proj", "v_proj"]),
        "linearized_adapter_model.safetensors": save(state),
    }


def pictures(name: str, count: int, seed: int) -> tuple[list[bytes], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    encoded = []
    for _ in range(count):
        buffer = io.BytesIO()
        pixels = torch.randint(256, (10, 12, 3), generator=generator, dtype=torch.uint8)
        Pictures.fromarray(pixels.numpy()).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    classes = len(table.datasets()[name].classes)
    return encoded, torch.randint(classes, (count,), generator=generator).tolist()


def image_data(name: str) -> dict[str, bytes]:
    """A data set of pictures, with the columns, splits and kinds of files of the published one."""
    data = table.datasets()[name]
    if name == "fer2013":
        return {f"{split}/0.tar": _tar(*pictures(name, *drawn)) for split, drawn in _draws(data).items()}
    (image, label), made = (data.columns["image"][-1], data.columns["label"][-1]), {}
    kind = (
        Value("bool")
        if name == "pcam"
        else ClassLabel(names=list(data.classes))
        if name != "sun397"
        else Value("int64")
    )
    for split, drawn in _draws(data).items():
        encoded, labels = pictures(name, *drawn)
        columns = {
            image: [{"bytes": each, "path": None} for each in encoded],
            label: labels,
            "more": ["x"] * len(labels),
        }
        if name == "pcam":
            columns[label] = [bool(each) for each in labels]
        features = Features({image: Image(), label: kind, "more": Value("string")})
        folder = f"{data.config}/" if data.config else "data/"
        made[f"{folder}{split}-00000-of-00001.parquet"] = parquet(columns, features)
    if name == "svhn":  # the configuration that is not wanted has a test split, too
        made["full_numbers/test-00000-of-00001.parquet"] = b"not to be read"
    if name in ("eurosat", "svhn"):
        config = data.config or "default"
        lines = [f"  - split: {split}\n    path: {folder}{split}-*" for split in _draws(data)]
        header = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n" + "\n".join(lines) + "\n---\n"
        made["README.md"] = header.encode()
    return made


def parquet(columns: dict, features: Features) -> bytes:
    buffer = io.BytesIO()
    Dataset.from_dict(columns, features=features).to_parquet(buffer)
    return buffer.getvalue()


def _draws(data) -> dict[str, tuple[int, int]]:
    return {"train": (TRAIN, 0), data.test: (TEST, 1)}


def _tar(encoded: list[bytes], labels: list[int]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index, (picture, label) in enumerate(zip(encoded, labels, strict=True)):
            for suffix, content in (("jpg", picture), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"s{index:07d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def byte_tokenizer(end: str) -> bytes:
    """A tokenizer in which every byte is a token, as GPT-2's is before its merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: index for index, sign in enumerate([*alphabet, end])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([end])
    return made.to_str().encode()


GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 48, "vocab_size": 257, "pad_token_id": 256}


def gpt2(seed: int, labels: int | None = None) -> dict[str, bytes]:
    """GPT-2 with its tokenizer and the masks of older files; with ``labels``, a fine-tuned classifier."""
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model

    config = GPT2Config(**GPT2, bos_token_id=256, eos_token_id=256, num_labels=labels or 2)
    torch.manual_seed(seed)
    model = GPT2ForSequenceClassification(config) if labels else GPT2Model(config)
    state = dict(model.state_dict())
    if labels:
        return {"config.json": as_json(**config.to_dict()), **weights(state, "bin" if labels == 3 else "one")}
    state |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 48, 48) for layer in range(2)}
    named = {"tokenizer.json": byte_tokenizer("<|endoftext|>"), "onnx/decoder_model.onnx": b"not needed"}
    return {"config.json": as_json(**config.to_dict()), **named, **weights(state, "one")}


T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "vocab_size": 258}


def t5(seed: int, style: str = "one", *, tokenizer: bool = False) -> dict[str, bytes]:
    """A Flan-T5, whose output layer is its own.

    Args:
        style: of the files, see ``weights``; "tied" repeats the embedding under all its names.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=257, eos_token_id=256,
        decoder_start_token_id=257,
    )  # fmt: skip
    torch.manual_seed(seed)
    state = dict(T5ForConditionalGeneration(config).state_dict())
    state["lm_head.weight"] = 0.1 * torch.randn(258, 8)
    if style != "tied":
        state = {name: tensor for name, tensor in state.items() if "embed_tokens" not in name}
    facts = {**config.to_dict(), "tie_word_embeddings": False}
    del facts["scale_decoder_outputs"]  # which transformers makes of it when it reads Flan's file
    made = {"config.json": as_json(**facts), "generation_config.json": b"{}", **weights(state, style)}
    return made | ({"tokenizer.json": byte_tokenizer("</s>"), "spiece.model": b"slow"} if tokenizer else {})


def t5_targets() -> dict[str, tuple[int, int]]:
    attentions = [("encoder", 0, "SelfAttention"), ("decoder", 0, "SelfAttention"), ("decoder", 1, "EncDecAttention")]
    return {
        f"{stack}.block.{layer}.layer.{index}.{attention}.{kind}": (8, 8)
        for stack, index, attention in attentions
        for layer in range(2)
        for kind in "qv"
    }


def glue() -> dict[str, bytes]:
    """All configurations of GLUE that are used, in one repository."""
    made, header = {}, ""
    for name in table.sets()["glue8"]:
        data = table.datasets()[name]
        generator = torch.Generator().manual_seed(seed_of(name))
        number = name == "stsb"
        label = Value("float32") if number else ClassLabel(names=list(data.classes))
        for split, count in (("train", TRAIN), (data.test, TEST), ("test", 2)):
            columns: dict = {"idx": list(range(count))}
            for (its,) in (names for ours, names in data.columns.items() if ours != "label"):
                lengths = torch.randint(3, 60, (count,), generator=generator).tolist()
                columns[its] = ["".join(chr(97 + (7 * n + i * i) % 26) for i in range(n)) for n in lengths]
            drawn = torch.randint(5 if number else len(data.classes), (count,), generator=generator).tolist()
            columns["label"] = [each + 0.25 for each in drawn] if number else drawn
            kinds = {its: label if its == "label" else Value("int32" if its == "idx" else "string") for its in columns}
            made[f"{name}/{split}-00000-of-00001.parquet"] = parquet(columns, Features(kinds))
        paths = "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in ("train", data.test, "test"))
        header += f"- config_name: {name}\n  data_files:\n{paths}"
    return {"README.md": f"---\nconfigs:\n{header}---\n# GLUE".encode(), **made}


def seed_of(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
