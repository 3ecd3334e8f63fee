"""The page on a user's own models, followed word by word in an empty folder."""

import re
from pathlib import Path

import pytest
import yaml

from fusionlib.press.cli import main
from fusionlib.press.values import impossible

PAGE = Path(__file__).parents[1] / "book" / "howto" / "merge_your_own.md"


def test_every_step_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    files, run, names = [], 0, {}
    for language, code in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if language == "yaml":
            files.append(code)
            Path("merge.yaml").write_text(files[0])
        elif language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
            run += 1
        elif "merge" in code:
            assert main(code.split()[1:]) == 0
            run += 1
    assert run == 4 and "without 2 tensors: classifier" in Path("merged/README.md").read_text()
    assert set(names["record"].counts) == {"films", "topics"} and "Task Arithmetic" in capsys.readouterr().out
    for key, value in yaml.safe_load(files[1]).items():
        assert impossible(key, value, tmp_path) is None, key


def test_what_the_page_lists_is_what_there_is():
    from fusionlib import methods

    able = [name for name in methods.names() if methods.get(name).card.takes == "weights"]
    listed = next(line for line in PAGE.read_text().splitlines() if line.startswith("- Methods that need no data"))
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(able)


@pytest.mark.parametrize("name", ["own_checkpoints", "merge_your_own"])
def test_pages_are_in_the_book(name):
    assert f"book/howto/{name}" in (PAGE.parents[2] / "_toc.yml").read_text()
