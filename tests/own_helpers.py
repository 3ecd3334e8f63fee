"""Models, tokenizers and data of a user's own, small enough to be made in a test."""

from pathlib import Path

import torch

WORDS = ["good", "bad", "fine", "awful", "film", "food", "very", "not"]


def save_tokenizer(folder: Path, kind: str, pad: bool = True) -> None:
    """Words to ids, with the special tokens and the pairs of BERT, or plain."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if kind == "bert":
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    extra = {"pad_token": "[PAD]"} if pad else {}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=inputs, **names, **extra).save_pretrained(folder)


def config(kind: str, labels: int = 2, names: list[str] | None = None):
    import transformers as t

    wide = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    told = {"num_labels": labels} if names is None else {"id2label": dict(enumerate(names))}
    match kind:
        case "bert":
            return t.BertConfig(**wide, **told, vocab_size=20, max_position_embeddings=20)
        case "roberta":
            return t.RobertaConfig(**wide, **told, vocab_size=20, max_position_embeddings=20, pad_token_id=0)
        case "gpt2":
            return t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=20, **told)
        case "llama":
            return t.LlamaConfig(**wide, **told, num_key_value_heads=1, vocab_size=20, max_position_embeddings=20)
        case "t5":
            return t.T5Config(d_model=16, d_ff=24, d_kv=8, num_layers=1, num_heads=2, vocab_size=20, **told)
        case "vit":
            return t.ViTConfig(**wide, **told, image_size=32, patch_size=16)
    raise ValueError(kind)


def classifier(kind: str, seed: int, labels: int = 2, names: list[str] | None = None):
    """A classifier with random weights."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    auto = AutoModelForImageClassification if kind == "vit" else AutoModelForSequenceClassification
    torch.manual_seed(seed)
    return auto.from_config(config(kind, labels, names)).eval()


def save_base(folder: Path, kind: str, seed: int = 0):
    """A pretrained model without a head, with what reads its inputs."""
    from transformers import AutoModel, ViTImageProcessor

    torch.manual_seed(seed)
    model = AutoModel.from_config(config(kind)).eval()
    model.save_pretrained(folder)
    if kind == "vit":
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    else:
        save_tokenizer(folder, "bert" if kind in ("bert", "roberta") else kind)
    return model


def save_texts(folder: Path, names=("no", "yes"), pairs: bool = False, count: int = 24) -> Path:
    """A task of texts in Parquet files, of different lengths."""
    from datasets import ClassLabel, Dataset

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(len(names))

    def text() -> str:
        length = int(torch.randint(1, 6, (1,), generator=generator))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=generator))

    for split in ("train", "test"):
        columns = {name: [text() for _ in range(count)] for name in (("text_a", "text_b") if pairs else ("text",))}
        data = Dataset.from_dict({**columns, "label": [index % len(names) for index in range(count)]})
        data.cast_column("label", ClassLabel(names=list(names))).to_parquet(folder / f"{split}.parquet")
    return folder


def save_pictures(root: Path, names=("red", "blue"), count: int = 6) -> Path:
    """An imagefolder."""
    from PIL import Image

    for split in ("train", "test"):
        for index, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (30 * number, 90 * index, 200)).save(folder / f"{number}.png")
    return root
