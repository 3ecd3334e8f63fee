"""open_clip's checkpoints, as miniature random models: converted, they give what the originals give."""

import json
import shutil
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fusionlib as fl
from fusionlib.core import CheckpointError, KeyMismatch, ParameterError, UnknownName
from fusionlib.testing import assert_same_weights
from fusionlib.zoo import openclip
from fusionlib.zoo.openclip_preprocess import read_preprocess
from fusionlib.zoo.task import embedded_task

VISION = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32, "mlp_ratio": 2.0}
TEXT = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 49408, "context_length": 24}
FACTS = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
PREPROCESS = {"size": [32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))


def build(seed=0, custom=False, **facts):
    """A model whose every weight is random, biases and norms too, so that no two of them can be mixed up."""
    torch.manual_seed(seed)
    made = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**{**FACTS, **facts}).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def write(folder, made, name="open_clip_model.safetensors", **facts):
    """What open_clip pushes to the hub: configuration and weights."""
    folder.mkdir()
    settings = {"model_cfg": {**FACTS, **facts}, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    if name.endswith(".bin"):
        torch.save(made.state_dict(), folder / name)
    else:
        save_file(made.state_dict(), folder / name)
    return folder


def features(suite, made, which=None):
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        return suite.model(which)(pixel_values=pixels).image_embeds, made.encode_image(pixels)


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"quick_gelu": True},
        {"vision_cfg": {**VISION, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}}},
        {"vision_cfg": {**VISION, "final_ln_after_pool": True, "patch_dropout": 0.5, "pool_type": "tok"}},
    ],
)
def test_features_and_zero_shot_heads_equal_open_clips(tmp_path, facts, custom):
    made = build(custom=custom, **facts)
    suite = fl.load_suite(write(tmp_path / "clip", made, **facts), ["emoji"], tuning="none", device="cpu")
    torch.testing.assert_close(*features(suite, made), rtol=1e-5, atol=1e-5)
    task = embedded_task("emoji")
    tokens = open_clip.SimpleTokenizer(context_length=24)
    with torch.inference_mode():
        rows = [
            made.encode_text(tokens([template.format(prompt) for template in task.templates]), normalize=True).mean(0)
            for prompt in task.prompts
        ]
    expected = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    torch.testing.assert_close(suite.heads["emoji"].weight, expected, rtol=1e-5, atol=1e-5)
    assert suite.heads["emoji"].logit_scale == pytest.approx(made.logit_scale.exp().item())


def test_the_activation_matters(tmp_path):
    made = build(quick_gelu=True)
    suite = fl.load_suite(write(tmp_path / "clip", made), ["emoji"], tuning="none", device="cpu")
    found, expected = features(suite, made)
    assert not torch.allclose(found, expected, atol=1e-3)


LAYOUTS = ["bin", "training", "file", "module", "holder", "visual", "no-config", "adapter-free transformers file"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_fine_tune(tmp_path, layout):
    base, tuned = write(tmp_path / "base", build()), build(1)
    state, place = tuned.state_dict(), tmp_path / "tuned.pt"
    if layout == "bin":
        place = write(tmp_path / "tuned", tuned, "open_clip_pytorch_model.bin")
    elif layout == "training":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}}, place)
    elif layout in ("module", "holder"):
        prefix = {"module": "module.model.", "holder": "model."}[layout]
        torch.save({f"{prefix}{key}": value for key, value in state.items()}, place)
    elif layout == "visual":
        torch.save(tuned.visual.state_dict(), place)
    elif layout == "no-config":
        place = write(tmp_path / "tuned", tuned)
        (place / "open_clip_config.json").unlink()
    elif layout == "file":
        torch.save(state, place)
    else:
        torch.save(openclip.vision_state(state), place)
    suite = fl.load_suite(base, ["emoji"], checkpoints={"emoji": place}, device="cpu")
    torch.testing.assert_close(*features(suite, tuned, suite.finetuned["emoji"]), rtol=1e-5, atol=1e-5)
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in suite.finetuned["emoji"].values())


def test_an_architecture_by_name_with_a_file_of_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny-test", FACTS)
    made = build()
    torch.save({name: tensor.half() for name, tensor in made.state_dict().items()}, tmp_path / "weights.pt")
    name = f"open_clip:ViT-tiny-test:{tmp_path / 'weights.pt'}"
    suite = fl.load_suite(name, ["emoji"], tuning="none", device="cpu")
    torch.testing.assert_close(*features(suite, made), rtol=1e-2, atol=1e-2)
    assert suite.spec.backbone == name and suite.backbone.preprocess.mean[0] == pytest.approx(0.48145466)
    with pytest.raises(CheckpointError, match=r"no file of weights. Write open_clip:ViT-tiny-test:path"):
        fl.load_suite("open_clip:ViT-tiny-test", ["emoji"], tuning="none")
    with pytest.raises(CheckpointError, match=r"no.pt, where there is no file.*hf-hub:owner/name"):
        fl.load_suite("open_clip:ViT-tiny-test:no.pt", ["emoji"], tuning="none")
    with pytest.raises(UnknownName, match=r"no architecture 'ViT-B-33'\. Did you mean 'ViT-B-32'\?"):
        fl.load_suite("open_clip:ViT-B-33", ["emoji"], tuning="none")


def test_prefixes_of_open_clip(tmp_path, monkeypatch):
    import huggingface_hub

    folder = write(tmp_path / "clip", build(), "open_clip_pytorch_model.bin")
    asked = []

    def download(name, **options):
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    expected = fl.load_suite(folder, ["emoji"], tuning="none", device="cpu")
    for name in ("hf-hub:laion/CLIP-tiny", f"local-dir:{folder}", "laion/CLIP-tiny"):
        suite = fl.load_suite(name, ["emoji"], tuning="none", device="cpu")
        assert_same_weights(suite.pretrained, expected.pretrained, rtol=0, atol=0)
        assert suite.spec.backbone == name and suite.fingerprint == expected.fingerprint
    assert set(asked) == {"laion/CLIP-tiny"}


def test_of_two_formats_in_a_folder_the_name_decides(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = write(tmp_path / "clip", build())
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=12)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 32, "crop_size": 32}')
    heads = {"emoji": torch.randn(8, 12)}
    for name, width in ((folder, 8), (f"local-dir:{folder}", 16)):
        suite = fl.load_suite(name, ["emoji"], tuning="none", device="cpu", heads=heads)
        assert suite.backbone.config.hidden_size == width


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"timm_model_name": "convnext_base"}, "is timm's 'convnext_base'; of open_clip's models only CLIP's plain"),
        ({"layers": [3, 4, 6, 3]}, "is a modified ResNet; of open_clip's models"),
        ({"pool_type": "avg", "no_ln_pre": True}, "has pool_type: avg, no_ln_pre: True; of open_clip's"),
        ({"attentional_pool": True}, "has attentional_pool: True"),
        ({"ls_init_value": 0.1}, "has ls_init_value: 0.1"),
        ({"image_size": [32, 48]}, "image_size [32, 48]; only squares"),
        ({"act_kwargs": {"inplace": True}}, "activation settings {'inplace': True}"),
    ],
)
def test_other_vision_towers_are_refused(tower, message):
    with pytest.raises(CheckpointError) as caught:
        openclip.vision_config({**FACTS, "vision_cfg": {**VISION, **tower}}, "clip")
    assert message in str(caught.value)


def test_other_text_towers_are_refused_only_when_a_head_is_needed(tmp_path):
    made = build()
    for index, (tower, message) in enumerate(
        [
            ({"hf_tokenizer_name": "bert-base-uncased"}, r"hf_tokenizer_name: bert-base-uncased.*Pass heads="),
            ({"pool_type": "last"}, "the text tower in .* has pool_type: last"),
        ]
    ):
        folder = write(tmp_path / f"clip{index}", made, text_cfg={**TEXT, **tower})
        with pytest.raises(CheckpointError, match=message):
            fl.load_suite(folder, ["emoji"], tuning="none", device="cpu")
        fl.load_suite(folder, ["emoji"], tuning="none", device="cpu", heads={"emoji": torch.randn(8, 12)})
    torch.save(made.visual.state_dict(), tmp_path / "clip0" / "open_clip_pytorch_model.bin")
    (tmp_path / "clip0" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ParameterError, match="no text tower to make one from"):
        fl.load_suite(tmp_path / "clip0", ["emoji"], tuning="none", device="cpu")


def test_keys_must_match_and_no_code_is_run(tmp_path):
    base, tuned = write(tmp_path / "base", build()), build(1).state_dict()
    file = tmp_path / "tuned.pt"

    def load(state):
        torch.save(state, file)
        fl.load_suite(base, ["emoji"], checkpoints={"emoji": file}, device="cpu")

    with pytest.raises(KeyMismatch, match="unexpected: classifier"):
        load({**tuned, "classifier": torch.ones(2)})
    with pytest.raises(KeyMismatch, match=r"missing: vision_model.post_layernorm.bias"):
        load({name: tensor for name, tensor in tuned.items() if name != "visual.ln_post.bias"})
    with pytest.raises(KeyMismatch, match=r"other shapes: visual_projection.weight is"):
        load({**tuned, "visual.proj": torch.ones(16, 7)})
    with pytest.raises(CheckpointError, match="something other than a state dict"):
        load({"state_dict": {"epoch": 3}})
    with pytest.raises(CheckpointError, match="can't be read as a file of plain tensors"):
        load({"code": shutil.rmtree})


def test_incomplete_folders(tmp_path):
    folder = write(tmp_path / "clip", build())
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 12}}')
    with pytest.raises(CheckpointError, match=r"no vision_cfg, text_cfg in open_clip_config.json"):
        fl.load_suite(folder, ["emoji"], tuning="none")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"can't be read as open_clip's configuration.*open_clip:ViT-B-32:path"):
        fl.load_suite(folder, ["emoji"], tuning="none")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds none of open_clip_model.safetensors"):
        fl.load_suite(
            write(tmp_path / "other", build()), ["emoji"], checkpoints={"emoji": f"local-dir:{folder}"}, device="cpu"
        )


def test_without_open_clip_the_extra_is_named(tmp_path, monkeypatch):
    folder = write(tmp_path / "clip", build())
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ParameterError, match=r"pip install fusionlib\[openclip\]"):
        fl.load_suite("open_clip:ViT-B-32:weights.pt", ["emoji"], tuning="none")
    with pytest.raises(ParameterError, match=r"pip install fusionlib\[openclip\]"):
        fl.load_suite(folder, ["emoji"], tuning="none", device="cpu")
    fl.load_suite(folder, ["emoji"], tuning="none", device="cpu", heads={"emoji": torch.randn(8, 12)})


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("kind", "size"), [("RGB", (100, 61)), ("L", (61, 97)), ("P", (32, 32)), ("RGBA", (31, 75))])
def test_preprocessing_equals_open_clips(mode, interpolation, kind, size):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values).convert(kind)
    facts = {**PREPROCESS, "resize_mode": mode, "interpolation": interpolation}
    ours = read_preprocess(facts, 32, "clip")
    expected = image_transform_v2(PreprocessCfg(**facts), is_train=False)(image)
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None])[0], expected, rtol=1e-5, atol=1e-5)


def test_preprocessing_that_is_not_supported():
    with pytest.raises(CheckpointError, match=r"resize_mode 'longest'. Supported: bicubic or bilinear; shortest or sq"):
        read_preprocess({"resize_mode": "longest"}, 32, "clip")
