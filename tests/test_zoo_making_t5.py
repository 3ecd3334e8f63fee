"""The exercises that tiny-t5's base is trained on, and its training."""

import itertools
import random

import pytest
import torch

from fusionlib.core import ParameterError
from fusionlib.zoo.files import TEXT, hash_file
from fusionlib.zoo.making import exercises, sources, text_to_text, tiny_t5_base
from fusionlib.zoo.texts import read_tokenizer

DOCUMENTS = {
    "wordnet": ["small bird <sep> It is a kind of animal.", "thing : what one can touch"],
    "bible": ["And he said <sep> And he spoke", "In the beginning"],
    "novels": ["She was glad. He was not."],
    "reviews": ["It works."],
    "food": ["Tasty."],
    "mails": ["hello : call me"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(TEXT / "tokenizer.json", hash_file(TEXT / "tokenizer.json"))


@pytest.mark.parametrize("seed", range(20))
def test_gaps_put_back_give_the_window(seed):
    window = torch.arange(100, 164)
    source, answer = exercises.gaps(window, random.Random(seed))
    assert source[-1] == answer[-1] == 1
    signs = [token for token in source if token < 16][:-1]
    assert signs == [token for token in answer if token < 16][:-1] == list(range(3, 8))
    spans, at = {}, None
    for token in answer[:-1]:
        at = token if token < 16 else at
        spans.setdefault(at, []).extend([token] if token >= 16 else [])
    whole = [back for token in source[:-1] for back in (spans[token] if token < 16 else [token])]
    assert whole == window.tolist() and all(1 <= len(span) <= 5 for span in spans.values())
    assert all(one >= 16 or other >= 16 for one, other in itertools.pairwise(source[:-1]))


def test_exercises_ask_and_answer(tokenizer):
    mixed = [text for texts in DOCUMENTS.values() for text in texts] * 20
    made = exercises.make_exercises(tokenizer, DOCUMENTS, mixed)
    assert sum(exercise.share for exercise in made.values()) == pytest.approx(1)
    rng = random.Random(0)
    said = {
        name: {tuple(tokenizer.decode(ids[:-1]).strip() for ids in made[name].draw(rng)) for _ in range(60)}
        for name in ("kind", "again", "origin")
    }
    assert said["kind"] == {("small bird it is a kind of", "animal")}
    assert said["again"] == {
        ("say it again : and he said", "and he spoke"),
        ("say it again : and he spoke", "and he said"),
    }
    assert {answer for _, answer in said["origin"]} == {"dictionary", "bible", "novel", "review", "mail"}
    assert ("where is this from ? small bird", "dictionary") in said["origin"]


def test_broken_off_training_goes_on_to_the_same_bits(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_to_text, "SNAPSHOT_STEPS", 2)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    monkeypatch.setattr(text_to_text, "CONFIG", {**text_to_text.CONFIG, **small})
    mixed = [text for texts in DOCUMENTS.values() for text in texts] * 20
    made = exercises.make_exercises(tokenizer, DOCUMENTS, mixed)
    training = text_to_text.Training(steps=6, warmup=2)

    def train(name, say=lambda line: None):
        model = text_to_text.build(0)
        facts = text_to_text.train(model, made, training, 0, tmp_path / name, say)
        return model.state_dict(), facts

    def stop(line):
        if line.startswith("step 4"):
            raise KeyboardInterrupt

    whole, facts = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", stop)
    resumed, _ = train("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole) and 2 < facts["loss"]["gaps"] < 20


def test_given_embeddings_are_brought_to_the_size_of_drawn_ones():
    given = 0.1 * torch.randn(6144, 128, generator=torch.Generator().manual_seed(0))
    model = text_to_text.build(0, given)
    assert model.shared.weight.square().mean().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(model.lm_head.weight / model.lm_head.weight[0, 0], given / given[0, 0])


def test_the_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources.Source, "roots", lambda self: iter(()))
    assert tiny_t5_base.main(["--out", str(tmp_path / "out"), "--sources", str(tmp_path)]) == 1
    assert "error: 6 source package(s) are missing" in capsys.readouterr().err
    with pytest.raises(ParameterError, match="steps_scale is 0; it must be positive"):
        tiny_t5_base.make_base(tmp_path, steps_scale=0)
