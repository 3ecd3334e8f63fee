"""What goes wrong between here and the hub: said in a sentence, tried again where that can help, never half done."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hub_miniatures import clip, clip_vision, image_data
from hub_standin import Fault, Hub, connected, serve
from huggingface_hub import constants

import fusionlib as fl
from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.hub import fetching, repos, table
from fusionlib.zoo.hub.repos import Repo
from fusionlib.zoo.locate import locate

TUNED = "tanganke/clip-vit-base-patch32_mnist"
ASKED = {"backbone": "clip-vit-base-patch32", "tasks": ["mnist"], "tuning": "full"}


@pytest.fixture(scope="module")
def published():
    hub = Hub()
    hub.repos["model", "openai/clip-vit-base-patch32"] = clip()
    hub.repos["model", TUNED] = clip_vision(1, "shards")
    hub.repos["dataset", "ylecun/mnist"] = image_data("mnist")
    return dict(hub.repos)


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A hub of one suite, an empty cache, and no waiting."""
    hub = Hub({name: dict(files) for name, files in published.items()})
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client waits a second before it tries again
    with serve(hub), connected(hub, tmp_path):
        yield hub
        monkeypatch.undo()  # what a test changed inside goes back first, or it would put back what it found inside


def load(**changes):
    asked = {**ASKED, **changes}
    return fl.load_suite(asked["backbone"], asked["tasks"], tuning=asked["tuning"], device="cpu", progress=False)


def fetch(**changes):
    said = []
    fetching.fetch(fetching.needed_by([{**ASKED, **changes}]), said.append)
    return said


def test_server_errors_pass(hub, capsys):
    hub.faults = [Fault(rf"api/models/{TUNED}", "503", 2)]
    assert list(load().finetuned) == ["mnist"]
    said = capsys.readouterr().err
    assert f"{TUNED}: the hub answered 503; attempt 2 of 3 in 0 s." in said and "attempt 3 of 3" in said


def test_server_errors_that_stay(hub):
    hub.faults = [Fault("api/datasets/ylecun/mnist", "503", 99)]
    with pytest.raises(
        CheckpointError, match=r"1 of 3 repositories are not complete.*data sets: ylecun/mnist\. .*fetch"
    ):
        load()


def test_a_hub_that_does_not_answer(hub, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    with pytest.raises(CheckpointError, match=rf"'{TUNED}', is neither .*the connection failed.*hf download {TUNED}"):
        locate(TUNED, "backbone")
    assert "the connection failed (ConnectError); attempt 3 of 3" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"3 of 3 repositories are not complete.*the connection failed"):
        load()
    with pytest.raises(CheckpointError, match="the connection failed"):
        fetch()


def test_a_file_that_is_cut_off_is_continued(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    hub.faults = [Fault(r"model-00001-of-00002.safetensors", "cut")]
    load()
    spans = [span for method, path, span in hub.requests if method == "GET" and "model-00001" in path]
    assert len(spans) == 2 and spans[0] == "" and spans[1].startswith("bytes=")
    fetch()  # the joined halves have the right checksum


def test_a_wrong_checksum_is_found_and_the_file_deleted(hub):
    hub.faults = [Fault(r"model-00002-of-00002.safetensors", "corrupt")]
    with pytest.raises(CheckpointError, match=r"model-00002.* is not what the hub says: expected sha256 .*again"):
        fetch()
    assert repos.cached(Repo(TUNED)) is None
    assert fetch()[-1].startswith("All is there")


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(CheckpointError, match=r"'tanganke/clip-vit-base-patch32_mnist@v2', is neither.*Revision"):
        locate(f"{TUNED}@v2", "backbone")
    commit = hub.commit("model", TUNED)
    assert locate(f"{TUNED}@{commit}", "backbone").name == commit


def test_a_column_that_is_not_there(hub, monkeypatch):
    renamed = table.datasets() | {"mnist": _with_columns(table.datasets()["mnist"], {"label": ("digit",)})}
    monkeypatch.setattr("fusionlib.zoo.hub.loading.datasets", lambda: renamed)
    with pytest.raises(ParameterError, match=r"train split of ylecun/mnist has no column 'digit'.*found image, label"):
        load()


def test_another_number_of_classes(hub):
    hub.repos["dataset", "ylecun/mnist"] = image_data("eurosat") | image_data("dtd")
    with pytest.raises(ParameterError, match="labels of ylecun/mnist have 47 classes, and task 'mnist' has 10"):
        load()


def test_a_split_that_is_not_there(hub):
    files = hub.repos["dataset", "ylecun/mnist"]
    hub.repos["dataset", "ylecun/mnist"] = {path: content for path, content in files.items() if "test" not in path}
    with pytest.raises(CheckpointError, match="ylecun/mnist has no files of split 'test'"):
        load()


def test_offline_all_that_is_missing_is_listed_at_once(hub, monkeypatch):
    repos.download(Repo("openai/clip-vit-base-patch32"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        load()
    assert str(caught.value).startswith("2 of 3 repositories are not complete in ")
    assert f"Missing models: {TUNED}; data sets: ylecun/mnist. " in str(caught.value)
    command = "fusionlib fetch -p backbone clip-vit-base-patch32 -p tasks '[mnist]' -p tuning full"
    assert str(caught.value).endswith(f"HF_HUB_OFFLINE=0 {command}")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        fetch()


def test_offline_a_whole_copy_is_enough(hub, monkeypatch):
    suite = load()
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = load()
    assert again.fingerprint == suite.fingerprint and len(hub.requests) == asked


def test_what_does_not_fit_is_not_begun(hub, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: Full)
    with pytest.raises(CheckpointError, match=r"kB don't fit into .*, where 1 kB are free\. .*HF_HOME"):
        fetch()
    assert not [path for method, path, _ in hub.requests if method == "GET" and path.endswith(".safetensors")]


def test_sizes_come_first_and_nothing_is_fetched_twice(hub):
    said = fetch()
    assert said[0].startswith("3 repositories, ") and "to download into" in said[0] and len(said) == 5
    downloads = [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(set(downloads)) == len(downloads) and not [path for path in downloads if "msgpack" in path]
    assert len(fetch()) == 2
    assert [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path] == downloads


def test_the_command_and_the_environment(hub, tmp_path):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "fusionlib.press.cli", "fetch", "-p", "backbone", "clip-vit-base-patch32"]
    command += ["-p", "tasks", "[mnist]"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("All is there; the checksums of ")
    assert (tmp_path / "hf" / "hub" / "datasets--ylecun--mnist").is_dir()


def _with_columns(data, columns):
    import dataclasses

    return dataclasses.replace(data, columns={**data.columns, **columns})
