"""A user's own backbones, fine-tunes and heads, in every layout, as miniature random checkpoints."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, KeyMismatch, ParameterError, UnknownName
from fusionlib.testing import assert_same_weights
from fusionlib.zoo import files
from fusionlib.zoo.locate import fetch_data, locate

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 16}
DIM = 12
TASKS = ["emoji", "flags"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))


def vision_model(seed):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=DIM))


def write_processor(folder):
    folder.mkdir(exist_ok=True, parents=True)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    settings |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def heads():
    return {"emoji": torch.randn(8, DIM), "flags": torch.randn(43, DIM)}


def write_with_state(source, folder, state, name="model.safetensors"):
    """A copy of a checkpoint folder with other weights."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    return folder


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    vision_model(0).save_pretrained(folder)
    write_processor(folder)
    return folder


@pytest.fixture
def tuned(tmp_path):
    """Folder and expected weights of one fine-tune."""
    model = vision_model(1)
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned", model.state_dict()


def load(base, *checkpoints, **options):
    tasks = TASKS[: len(checkpoints)]
    given = {task: str(folder) for task, folder in zip(tasks, checkpoints, strict=True)}
    chosen = {task: head for task, head in heads().items() if task in tasks}
    return fl.load_suite(str(base), tasks, checkpoints=given, **{"heads": chosen, "device": "cpu", **options})


def test_local_folders(base, tuned):
    suite = load(base, tuned[0], base)
    assert_same_weights(suite.pretrained, vision_model(0).state_dict(), rtol=0, atol=0)
    assert_same_weights(suite.finetuned["emoji"], tuned[1], rtol=0, atol=0)
    assert_same_weights(suite.finetuned["flags"], suite.pretrained, rtol=0, atol=0)
    assert suite.heads["emoji"].logit_scale == 100.0 and suite.spec.backbone == str(base)
    batch, _ = next(suite.batches("emoji", "test", limit=2))
    picture = suite.task("emoji").dataset("test")[0]["image"].convert("RGB").getpixel((5, 7))
    expected = [(value / 255 - m) / s for value, m, s in zip(picture, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), strict=True)]
    torch.testing.assert_close(batch["pixel_values"][0, :, 7, 5], torch.tensor(expected))
    assert suite.model()(**batch).image_embeds.shape == (2, DIM)


def test_fingerprint_follows_content(base, tuned, tmp_path):
    copy = shutil.copytree(tuned[0], tmp_path / "copy")
    head = {"emoji": torch.ones(8, DIM)}
    first = load(base, tuned[0], heads=head).fingerprint
    assert first == load(base, copy, heads=head).fingerprint
    assert first != load(base, base, heads=head).fingerprint
    assert first != load(base, copy, heads={"emoji": torch.eye(8, DIM)}).fingerprint


@pytest.mark.parametrize(
    "layout",
    ["bin", "sharded", "sharded-bin", "half", "bare", "vision-model", "classifier", "position-ids", "wrapped", "inner"],
)
def test_layouts_of_a_fine_tune(base, tuned, tmp_path, layout):
    source, expected = tuned
    folder = tmp_path / layout
    if layout == "bin":
        write_with_state(source, folder, expected, "pytorch_model.bin")
    elif layout == "sharded":
        vision_model(1).save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif layout == "sharded-bin":
        names = list(expected)
        write_with_state(source, folder, {name: expected[name] for name in names[:5]}, "one.bin")
        torch.save({name: expected[name] for name in names[5:]}, folder / "two.bin")
        places = {name: "one.bin" if name in names[:5] else "two.bin" for name in names}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    elif layout == "half":
        write_with_state(source, folder, {name: tensor.half() for name, tensor in expected.items()})
        expected = {name: tensor.half().float() for name, tensor in expected.items()}
    elif layout == "bare":
        write_with_state(source, folder, {name.removeprefix("vision_model."): t for name, t in expected.items()})
    elif layout == "wrapped":
        write_with_state(source, folder, {f"module._orig_mod.{name}": t for name, t in expected.items()})
    elif layout == "inner":  # a user's own module that held the model, with compiled layers
        inner = {f"net.{name.replace('layers.1.', 'layers.1._orig_mod.')}": t for name, t in expected.items()}
        write_with_state(source, folder, inner)
    elif layout == "classifier":
        kept = {name: t for name, t in expected.items() if "projection" not in name}
        write_with_state(source, folder, {**kept, "classifier.weight": torch.ones(2, 16)})
        (folder / "config.json").write_text(json.dumps({"architectures": ["CLIPForImageClassification"]}))
        expected = {**expected, "visual_projection.weight": vision_model(0).state_dict()["visual_projection.weight"]}
    elif layout == "vision-model":
        write_with_state(source, folder, {name: t for name, t in expected.items() if "projection" not in name})
        (folder / "config.json").write_text(json.dumps({"architectures": ["CLIPVisionModel"]}))
        expected = {**expected, "visual_projection.weight": vision_model(0).state_dict()["visual_projection.weight"]}
    else:
        write_with_state(source, folder, {**expected, "vision_model.embeddings.position_ids": torch.arange(5)[None]})
    assert_same_weights(load(base, folder).finetuned["emoji"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_peft_adapter(base, tmp_path, prefix):
    from peft import LoraConfig

    name = "vision_model.encoder.layers.1.self_attn.q_proj"
    torch.manual_seed(2)
    up, down = torch.randn(16, 2), torch.randn(2, 16)
    state = {}
    for layer in range(2):
        key = f"base_model.model.{prefix}encoder.layers.{layer}.self_attn.q_proj"
        state |= {f"{key}.lora_A.weight": down * layer, f"{key}.lora_B.weight": up.clone()}
    folder = tmp_path / "adapter"
    LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"]).save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors")
    suite = load(base, folder)
    expected = {**suite.pretrained, f"{name}.weight": suite.pretrained[f"{name}.weight"] + 4 * up @ down}
    assert_same_weights(suite.finetuned["emoji"], expected)
    save_file({**state, "base_model.model.other.lora_A.weight": down.clone()}, folder / "adapter_model.safetensors")
    with pytest.raises(KeyMismatch, match=r"unexpected: base_model.model.other"):
        load(base, folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors"):
        load(base, folder)


def test_adapter_for_other_modules(base, tmp_path):
    from peft import LoraConfig

    LoraConfig(r=2, target_modules=["c_attn"]).save_pretrained(tmp_path / "adapter")
    key = "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({key: torch.ones(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit .*c_attn"):
        load(base, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("vision_model.post_layernorm.bias"), r"missing: vision_model.post_layernorm.bias\."),
        (lambda state: state.update(classifier=torch.ones(2)), r"unexpected: classifier\."),
        (
            lambda state: state.update({"visual_projection.weight": torch.ones(3, 16)}),
            r"visual_projection.weight is \(3, 16\), needed \(12, 16\)",
        ),
    ],
)
def test_keys_must_match_exactly(base, tuned, tmp_path, change, message):
    state = dict(tuned[1])
    change(state)
    with pytest.raises(KeyMismatch, match=message):
        load(base, write_with_state(tuned[0], tmp_path / "other", state))


def test_missing_and_unreadable_weights(base, tuned, tmp_path):
    folder = write_with_state(tuned[0], tmp_path / "cut", tuned[1])
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a complete safetensors file"):
        load(base, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights.*found: config.json"):
        load(base, folder)
    torch.save({"model": tuned[1], "step": 3}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="something other than a state dict"):
        load(base, folder)
    torch.save({"code": shutil.rmtree}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="can't be read as a file of plain tensors"):
        load(base, folder)


def test_a_missing_shard_is_named(base, tmp_path):
    vision_model(1).save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} is missing"):
        load(base, tmp_path / "sharded")


def test_every_task_needs_its_checkpoint(base, tuned):
    with pytest.raises(ParameterError, match="checkpoints has nothing for flags"):
        fl.load_suite(base, TASKS, checkpoints={"emoji": tuned[0]}, heads=heads(), device="cpu")
    with pytest.raises(ParameterError, match=r"no fine-tuned models for the backbone.*Pass checkpoints="):
        fl.load_suite(base, TASKS, heads=heads(), device="cpu")
    with pytest.raises(ParameterError, match=r"no head for task 'flags'.*no text tower"):
        fl.load_suite(base, TASKS, tuning="none", heads={"emoji": heads()["emoji"]}, device="cpu")


def test_heads_from_files(base, tmp_path):
    weights = heads()
    save_file(weights, tmp_path / "heads.safetensors")
    save_file({"weight": weights["flags"]}, tmp_path / "one.safetensors")
    paths = {"emoji": tmp_path / "heads.safetensors", "flags": tmp_path / "one.safetensors"}
    suite = fl.load_suite(base, TASKS, tuning="none", heads=paths, device="cpu")
    for task in TASKS:
        torch.testing.assert_close(suite.heads[task].weight, torch.nn.functional.normalize(weights[task]))
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"no head for task 'flags': its tensors are a, b"):
        fl.load_suite(base, TASKS, tuning="none", heads=paths, device="cpu")
    (tmp_path / "one.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"should be in .*one.safetensors, but there is no such file"):
        fl.load_suite(base, TASKS, tuning="none", heads=paths, device="cpu")


def test_a_copy_of_tiny_clip_keeps_its_heads_and_preprocessing(tmp_path):
    shutil.copy(files.DATA / "base.safetensors", tmp_path / "model.safetensors")
    shutil.copy(files.DATA / "config.json", tmp_path)
    copy = fl.load_suite(tmp_path, TASKS, tuning="none", device="cpu")
    original = fl.load_suite("tiny-clip", TASKS, tuning="none", device="cpu")
    assert_same_weights(copy.pretrained, original.pretrained, rtol=0, atol=0)
    assert copy.backbone.preprocess == original.backbone.preprocess
    assert copy.heads["flags"].logit_scale == original.heads["flags"].logit_scale == pytest.approx(29.0745)
    torch.testing.assert_close(copy.heads["flags"].weight, load_file(files.DATA / "heads.safetensors")["flags"])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "nobody/no-such-model",
            CheckpointError,
            "'nobody/no-such-model', is neither .*hf download nobody/no-such-model",
        ),
        ("./no/such/folder", CheckpointError, "no such folder. Check the path"),
        ("vit", UnknownName, "not a name in the zoo, a local folder, or a hub id"),
    ],
)
def test_places_that_are_not_there(name, error, message):
    with pytest.raises(error, match=message):
        locate(name, "backbone")


def test_a_misspelt_path_that_reads_like_a_hub_id_names_what_is_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "birds").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"Check the spelling \('models/birds' is here\); without a network"):
        locate("models/brids", "backbone")
    with pytest.raises(CheckpointError, match=r"Check the spelling \('models/birds' is here\); without a network"):
        fetch_data("models/brids", "data of task 'birds'")


def test_other_architectures_and_files_are_refused(tmp_path):
    for kind, message in (
        ("whisper_", "of type 'whisper_', unknown to transformers"),
        ("vits", "of type 'vits', of which transformers has no sequence or image classifier.*fl.merge"),
        ("resnet", "this 'resnet' does not say the size of its pictures"),
    ):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        with pytest.raises(CheckpointError, match=message):
            fl.load_suite(tmp_path, TASKS, tuning="none", device="cpu")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        fl.load_suite(tmp_path / "config.json", TASKS, tuning="none", device="cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json can't be read"):
        fl.load_suite(tmp_path, TASKS, tuning="none", device="cpu")
