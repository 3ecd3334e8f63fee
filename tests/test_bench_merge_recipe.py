"""Recipes of merges as people write them: what they mean, what is refused with which words, and never a traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import fusionlib as fl
from fusionlib.bench.merge_recipe import changed, read_recipe
from fusionlib.core import FusionError, ParameterError
from fusionlib.press.cli import main

GOOD = "method: task_arithmetic\npretrained: ./base\nfinetuned: [./one, ./two]\nhyperparameters: {scale: 0.5}\n"
KEY = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with three models of some hundred weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        GPT2LMHeadModel(GPT2Config(n_embd=4, n_layer=1, n_head=1, vocab_size=8, n_positions=4)).save_pretrained(
            folder / name
        )
    return folder


@pytest.fixture
def here(models, monkeypatch):
    monkeypatch.chdir(models)
    return models


def read(text, name="my.yaml"):
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_recipe(path)


@pytest.mark.parametrize("spelt", ["0.25", "25e-2", "2.5e-1", "+.25", "2.5E-1"])
def test_a_number_is_a_number_however_it_is_written(here, tmp_path, spelt):
    Path("my.yaml").write_text(GOOD.replace("0.5", spelt))
    assert main(["merge", "my.yaml", "--out", str(tmp_path / "out")]) == 0
    base, one, two, out = (
        load_file(f"{name}/model.safetensors")[KEY] for name in ("base", "one", "two", tmp_path / "out")
    )
    torch.testing.assert_close(out, base + 0.25 * (one - base) + 0.25 * (two - base))


def test_ways_of_writing_that_mean_the_same(here):
    meant = {
        "method": "task_arithmetic",
        "pretrained": "./base",
        "finetuned": ["./one", "./two"],
        "keep": [],
        "scale": 0.5,
    }
    for text in (
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        "---\n" + GOOD + "keep:\n",
        GOOD + "keep: []\n",
        GOOD.replace("[./one, ./two]", "{first: ./one, second: ./two}"),
        GOOD.replace("{scale: 0.5}", "\n  scale: 5e-1  # half"),
        json.dumps({**{k: v for k, v in meant.items() if k != "scale"}, "hyperparameters": {"scale": 0.5}}),
    ):
        assert read(text) == meant
    assert read(GOOD.replace("hyperparameters: {scale: 0.5}", "hyperparameters:\nkeep: [lm_head.*]"))["keep"] == [
        "lm_head.*"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "method: ties_merging\n", "my.yaml: 'method' is set on line 1 and on line 5"),
        (GOOD.replace("scale: 0.5", "scale: 0.5, scale: 0.9"), "my.yaml: 'scale' is set on line 4, twice"),
        (
            GOOD.replace("scale: 0.5", "pretrained: ./one"),
            "my.yaml, line 4: 'pretrained' is not a hyper-parameter; set",
        ),
        (GOOD.replace("scale: 0.5", "method: ties_merging"), "line 4: 'method' is not a hyper-parameter"),
        (GOOD.replace("scale: 0.5", "keep: ['*']"), "line 4: 'keep' is not a hyper-parameter"),
        (GOOD.replace("scale: 0.5", "folder: x"), "line 4: 'folder' is not a hyper-parameter; give it as --out"),
        (GOOD.replace("{scale: 0.5}", "[scale]"), "line 4: hyperparameters must be a mapping"),
        (GOOD.replace("{scale: 0.5}", "0"), "line 4: hyperparameters must be a mapping"),
        (GOOD + "keep: lm_head.*\n", "my.yaml, line 5: keep must be a list of strings"),
        (GOOD + "keep: [1]\n", "line 5: keep must be a list of strings"),
        (GOOD + "keep: ['']\n", "line 5: keep must be a list of strings"),
        (GOOD + "scale: 0.5\n", "line 5: 'scale' is not part of a merge. scale is a hyper-parameter: write it below"),
        (GOOD.replace("finetuned", "finetune"), "line 3: 'finetune' is not part of a merge. Did you mean 'finetuned'?"),
        (GOOD.replace("[./one, ./two]", "./one"), "line 3: finetuned must be a list of strings"),
        (GOOD.replace("[./one, ./two]", "[]"), "line 3: finetuned is empty"),
        (GOOD.replace("[./one, ./two]", "[{model: ./one}]"), "line 3: finetuned must be a list of strings"),
        (GOOD.replace("./base", "2024-13-45"), None),
        (GOOD.replace("./base", "3"), "line 2: pretrained must be a string"),
        (GOOD.replace("pretrained: ./base\n", ""), "my.yaml: pretrained must be a string, as in"),
        (GOOD.replace("task_arithmetic", "Task-Arithmetic"), "Did you mean 'task_arithmetic'?"),
        (
            GOOD.replace("task_arithmetic", "ties"),
            "line 1: no fusion method is called 'ties'. Did you mean 'ties_merging'?",
        ),
        (GOOD.replace("task_arithmetic", "slerp"), "line 1: no fusion method is called 'slerp'. Allowed: "),
        (GOOD.replace("./one", "./three"), "line 3: there is no ./three in "),
        (
            "merge_method: ties\nbase_model: ./base\nslices: []\n",
            "written for mergekit (merge_method, base_model, slices)",
        ),
        (GOOD + "dtype: float16\n", "my.yaml is written for mergekit (dtype): other keys are used here"),
        ("", "must hold `name: value` lines"),
        ("- a\n", "must hold `name: value` lines"),
        ("hello", "must hold `name: value` lines"),
        (GOOD.replace("[./one, ./two]", "\n\t- ./one"), "line 4 is not YAML"),
        (GOOD.replace("./one", "&a [*a]"), "my.yaml, line 3: "),
        (GOOD.replace("./one", 5000 * "["), "nested too deeply"),
        (GOOD.replace("0.5", "!!python/object/apply:os.getcwd []"), "my.yaml, line 4: the tag "),
        (GOOD.replace("./base", "./ba\0se"), "my.yaml"),
        (GOOD.encode("utf-16"), "my.yaml cannot be read: it is not UTF-8"),
        (GOOD.replace("./base", "./b\xe4se").encode("latin-1"), "my.yaml cannot be read: it is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(here, text, message):
    if message is None:
        assert read(text)["pretrained"] == "2024-13-45"
        return
    with pytest.raises(ParameterError) as error:
        read(text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["absent.yaml", "base", "my\0.yaml", 300 * "x"])
def test_no_such_recipe(here, name):
    with pytest.raises(ParameterError, match="cannot be read"):
        read_recipe(Path(name))


def test_paths_are_relative_to_where_the_command_runs(here, tmp_path, monkeypatch):
    recipe = here / "job" / "my.yaml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(GOOD)
    assert read_recipe(recipe)["pretrained"] == "./base"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ParameterError, match=rf"line 2: there is no \./base in {tmp_path}, to which paths are relative"
    ):
        read_recipe(recipe)
    shutil.copytree(here / "base", recipe.parent / "base")
    with pytest.raises(ParameterError, match=rf"one beside the recipe: write {recipe.parent}/base, or run the command"):
        read_recipe(recipe)
    recipe.write_text(GOOD.replace("./base", "~nobody-of-this-name/base").replace("./one, ./two", "owner/one, gpt2"))
    assert read_recipe(recipe)["finetuned"] == ["owner/one", "gpt2"], "not a path, or for others to judge"


def test_the_command_line_changes_hyperparameters_and_keep(here, capsys):
    asked = read(GOOD)
    assert changed(asked, {"scale": 0.7})["scale"] == 0.7 and changed(asked, {"keep": ["a"]})["keep"] == ["a"]
    for overrides, message in (
        (["-p", "method", "ties_merging"], "-p: 'method' is not a hyper-parameter; set `method:` in the file"),
        (["-p", "folder", "x"], "-p: 'folder' is not a hyper-parameter; give it as --out"),
        (["-p", "keep", "lm_head.*"], "-p: keep must be a list of patterns"),
        (["-p", "scale", "1", "-p", "scale", "2"], "-p: 'scale' is set more than once; keep one value."),
    ):
        assert main(["merge", "my.yaml", "--out", "never", *overrides]) == 2
        assert message in capsys.readouterr().err and not Path("never").exists()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["./one", "./base", "task_arithmetic", "ties_merging", "1e-1", "~", "~nobody/x", "*", "gpt2", "2024-01-01"]
    ),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=2), max_leaves=6
)
NAMES = st.sampled_from(["method", "pretrained", "finetuned", "keep", "hyperparameters", "scale", "folder", "models"])


@st.composite
def recipes(draw):
    """A good recipe with some of its values, keys or characters changed."""
    values = yaml.safe_load(GOOD)
    for _ in range(draw(st.integers(0, 2))):
        place = (
            values["hyperparameters"]
            if draw(st.booleans()) and isinstance(values.get("hyperparameters"), dict)
            else values
        )
        name = draw(NAMES)
        match draw(st.sampled_from(["set", "drop", "wrap"])):
            case "set":
                place[name] = draw(VALUES)
            case "drop":
                place.pop(name, None)
            case "wrap" if name in place:
                place[name] = [place[name]]
    text = yaml.safe_dump(
        values, allow_unicode=True, default_flow_style=draw(st.booleans()), sort_keys=draw(st.booleans())
    )
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + draw(
                st.sampled_from(
                    ["\t", "\0", "[", "}", ":", "- ", "&a ", "*a", "!!set ", "\r", "'", "\ufeff", "%", "\n"]
                )
            )
            + text[at:]
        )
    return text.encode("utf-8", errors="surrogatepass")


@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(recipes())
def test_any_recipe_is_merged_or_refused(here, text):
    shutil.rmtree("any", ignore_errors=True)
    try:
        fl.merge(folder="any", **read(text, "any.yaml"))
    except FusionError as error:
        assert str(error) and not Path("any").exists()
    else:
        merged, base = (load_file(f"{name}/model.safetensors") for name in ("any", "base"))
        assert merged.keys() == base.keys() and all(value.isfinite().all() for value in merged.values())
