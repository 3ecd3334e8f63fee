"""A user's own classifiers: taken apart without a change, read as their tokenizers do, fused with their heads kept."""

import warnings

import pytest
import torch
from own_helpers import classifier, config, save_base, save_pictures, save_texts, save_tokenizer

import fusionlib as fl
from fusionlib.core import CheckpointError, KeyMismatch, ParameterError, UnknownName
from fusionlib.ops.modules import predict


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))


def make(tmp_path, kind):
    """A suite of two tasks of different sizes, and the classifiers it was made of."""
    save_base(tmp_path / "base", kind)
    if kind == "vit":
        data = [save_pictures(tmp_path / "colours"), save_pictures(tmp_path / "shades", ("dark", "light", "mid"))]
    else:
        data = [save_texts(tmp_path / "colours"), save_texts(tmp_path / "shades", ("a", "b", "c"), pairs=True)]
    models = {"colours": classifier(kind, 1, 2), "shades": classifier(kind, 2, 3)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / f"tuned-{name}")
    entries = {path.name: {"data": str(path), "checkpoint": str(tmp_path / f"tuned-{path.name}")} for path in data}
    return fl.load_suite(str(tmp_path / "base"), entries, device="cpu"), models


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "vit"])
def test_backbone_and_head_say_what_the_classifier_says(tmp_path, kind):
    suite, models = make(tmp_path, kind)
    for name, model in models.items():
        model.config.pad_token_id = 0
        ours = suite.model(suite.finetuned[name])
        for batch, _ in suite.batches(name, "test", batch_size=5):
            with torch.inference_mode():
                expected = model(**batch).logits
                torch.testing.assert_close(predict(ours, suite.heads[name], batch), expected, rtol=1e-4, atol=1e-5)
    assert not any(key.startswith(("classifier", "score")) for key in suite.pretrained)
    record = fl.run("task_arithmetic", suite, split="test", scale=0.5)
    assert set(record.counts) == {"colours", "shades"}
    fl.references(suite)
    saved = fl.save(fl.fuse("simple_average", suite), tmp_path / "fused")
    fl.testing.assert_same_weights(fl.load(saved).state_dict(), fl.fuse("simple_average", suite).state_dict())


def test_methods_guided_by_inputs(tmp_path):
    suite, _ = make(tmp_path, "bert")
    for method, settings in (
        ("fisher_merging", {"num_examples": 4}),
        ("regmean", {"num_examples": 4}),
        ("task_wise_adamerging", {"steps": 1, "batch_size": 2}),
        ("simple_ensemble", {}),
    ):
        assert fl.run(method, suite, limit=6, **settings).counts["shades"][1] == 6


def test_texts_are_tokenised_as_the_tokenizer_does(tmp_path):
    from transformers import AutoTokenizer

    suite, _ = make(tmp_path, "bert")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    row = suite.task("shades").dataset("test")[0]
    batch, _ = suite.examples("shades", "test", [0, 1])
    expected = tokenizer(row["text_a"], row["text_b"])
    length = len(expected["input_ids"])
    for key in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch[key][0, :length].tolist() == expected[key]
        assert not batch[key][0, length:].any()


def test_labels_are_put_in_the_order_of_the_classes(tmp_path):
    save_base(tmp_path / "base", "bert")
    data = save_texts(tmp_path / "data", ("no", "yes"))
    turned = classifier("bert", 1, names=["YES", "No"])
    turned.save_pretrained(tmp_path / "tuned")

    def load():
        return fl.load_suite(tmp_path / "base", {"t": data}, checkpoints={"t": tmp_path / "tuned"}, device="cpu")

    suite = load()
    batch, _ = suite.examples("t", "test", range(4))
    with torch.inference_mode():
        found = predict(suite.model(suite.finetuned["t"]), suite.heads["t"], batch)
        torch.testing.assert_close(found, turned(**batch).logits.flip(1), rtol=1e-4, atol=1e-5)
    classifier("bert", 1, names=["up", "down"]).save_pretrained(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=r"has the labels up, down, but task 't' has the classes no, yes"):
        load()
    classifier("bert", 1, 3).save_pretrained(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match="tells 3 classes apart, but task 't' has 2"):
        load()


def test_adapters_with_their_heads(tmp_path):
    from peft import LoraConfig, TaskType, get_peft_model

    save_base(tmp_path / "base", "bert")
    data = save_texts(tmp_path / "data")
    from transformers import AutoModelForSequenceClassification

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
        options = {"r": 2, "target_modules": ["query"], "init_lora_weights": False}
        adapted = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, **options)).eval()
        adapted.save_pretrained(tmp_path / "lora")
        bare = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
        get_peft_model(bare, LoraConfig(**options)).save_pretrained(tmp_path / "headless")
    suite = fl.load_suite(tmp_path / "base", {"t": {"data": data, "checkpoint": tmp_path / "lora"}}, device="cpu")
    batch, _ = suite.examples("t", "test", range(4))
    with torch.inference_mode():
        found = predict(suite.model(suite.finetuned["t"]), suite.heads["t"], batch)
        torch.testing.assert_close(found, adapted(**batch).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyMismatch, match=r"holds no head: classifier.weight, classifier.bias"):
        fl.load_suite(tmp_path / "base", {"t": data}, checkpoints={"t": tmp_path / "headless"}, device="cpu")


def test_a_pretrained_model_with_another_head(tmp_path):
    """The pretrained model of a suite is often a language model: its own head is no matter."""
    from transformers import GPT2LMHeadModel

    GPT2LMHeadModel(config("gpt2")).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base", "gpt2", pad=False)
    classifier("gpt2", 1).save_pretrained(tmp_path / "tuned")
    data = save_texts(tmp_path / "data")
    suite = fl.load_suite(tmp_path / "base", {"t": data}, checkpoints={"t": tmp_path / "tuned"}, device="cpu")
    assert suite.backbone.preprocess.pad == 3, "the end token pads where there is no padding token"
    assert fl.run("simple_average", suite, limit=4).counts["t"][1] == 4


def test_errors(tmp_path):
    data = save_texts(tmp_path / "data")
    save_base(tmp_path / "base", "bert")
    classifier("bert", 1).save_pretrained(tmp_path / "tuned")
    classifier("gpt2", 1).save_pretrained(tmp_path / "other")
    base = tmp_path / "base"
    with pytest.raises(ParameterError, match=r"no head for task 't': heads of .* come with its fine-tunes"):
        fl.load_suite(base, {"t": data}, tuning="none", device="cpu")
    with pytest.raises(ParameterError, match="checkpoints has nothing for t"):
        fl.load_suite(base, {"t": data, "u": data}, checkpoints={"u": tmp_path / "tuned"}, device="cpu")
    with pytest.raises((KeyMismatch, CheckpointError), match="other"):
        fl.load_suite(base, {"t": data}, checkpoints={"t": tmp_path / "other"}, device="cpu")
    with pytest.raises(ParameterError, match="reads texts, and mnist can't"):
        fl.load_suite(base, ["mnist"], checkpoints={"mnist": tmp_path / "tuned"}, device="cpu")
    with pytest.raises(
        ParameterError, match=r"task 't' has 'chekpoint', which is not known. Did you mean 'checkpoint'"
    ):
        fl.load_suite(base, {"t": {"data": data, "chekpoint": "x"}}, device="cpu")
    with pytest.raises(UnknownName, match=r"task 'mnst' has no data.*Did you mean 'mnist'"):
        fl.load_suite(base, {"mnst": {"checkpoint": "x"}}, device="cpu")
    with pytest.raises(ParameterError, match="the data of task 't' is 3"):
        fl.load_suite(base, {"t": 3}, device="cpu")
    for path in base.glob("token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="base holds no tokenizer"):
        fl.load_suite(base, {"t": data}, checkpoints={"t": tmp_path / "tuned"}, device="cpu")
    from transformers import T5Model

    T5Model(config("t5")).save_pretrained(tmp_path / "t5")
    save_tokenizer(tmp_path / "t5", "t5")
    with pytest.raises(CheckpointError, match=r"T5ForSequenceClassification can't be taken apart.*fl.merge"):
        fl.load_suite(tmp_path / "t5", {"t": data}, checkpoints={"t": tmp_path / "tuned"}, device="cpu")
