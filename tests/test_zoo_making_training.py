"""Distortions, batches, loss and stages of making the embedded base, on toy pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusionlib.core import NonFiniteError, ParameterError
from fusionlib.zoo.files import DATA
from fusionlib.zoo.making import (
    augment,
    captions,
    glyphs,
    heads,
    stages,
)
from fusionlib.zoo.making.batches import Batches, Mix
from fusionlib.zoo.making.pool import SOURCES, Pool


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def toy_pool():
    pool = Pool()
    for number, source in enumerate(SOURCES):
        concepts = captions.glyph_concepts() if source == "glyphs" else [captions.concept("mnist", w) for w in "ab"]
        labels = np.arange(62 if source == "glyphs" else 8) % len(concepts)
        shape = (len(labels), 32, 32, 3) if source in ("emoji", "landsat", "textures") else (len(labels), 32, 32)
        pictures = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        pool.add(source, pictures, concepts, labels, seed=0)
    return pool


# augmentation and batches


@pytest.mark.parametrize(
    "distort",
    [
        lambda x, g: augment.warp(x, g, degrees=15),
        lambda x, g: augment.warp(x, g, degrees=30, padding="reflection"),
        augment.flip,
        augment.jitter,
        augment.noise,
        augment.blur,
        augment.invert_grey,
        augment.permute_channels,
    ],
)
def test_distortions_keep_shape_and_range_and_repeat_by_seed(distort):
    pictures = torch.rand((6, 3, 32, 32), generator=seeded(5))
    first = distort(pictures, seeded(1))
    assert first.shape == pictures.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1 + 1e-6
    assert torch.equal(first, distort(pictures, seeded(1)))
    assert not torch.equal(first, distort(pictures, seeded(2)))


def test_painted_glyphs_stand_out():
    behind = augment.colour_field(200, seeded(0))
    masks = torch.zeros(200, 1, 32, 32)
    masks[..., 16:] = 1
    painted = augment.paint(masks, behind, seeded(1))
    assert torch.equal(painted[..., :16], behind[..., :16])
    ink = augment.luminance(painted)[:, 0, 0, 31]
    assert float((ink - augment.luminance(behind).mean(dim=(1, 2, 3))).abs().min()) >= augment.GAP - 1e-5


def test_neighbours_come_in_at_one_side_only():
    masks, others = torch.zeros(50, 1, 32, 32), torch.ones(50, 1, 32, 32)
    assert not augment.beside(masks, others, seeded(0), probability=0).any()
    both = augment.beside(masks, others, seeded(0), probability=1)
    assert ((both[..., 0].amax(dim=(1, 2)) > 0) ^ (both[..., -1].amax(dim=(1, 2)) > 0)).all()
    assert not both[..., 15:17].any()


@pytest.mark.parametrize("photos", [False, True])
def test_batches_have_the_shares_and_repeat_by_seed(photos):
    pool = toy_pool()
    mix = Mix((0.5, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05), (1, 1, 1, 1, None), photos)
    assert sum(mix.counts(40).values()) == 40
    first, rows = Batches(pool, mix, 40, seed=3).draw()
    again, same_rows = Batches(pool, mix, 40, seed=3).draw()
    assert first.shape == (40, 3, 32, 32)
    assert float(first.min()) >= -1
    assert float(first.max()) <= 1
    assert torch.equal(first, again)
    assert torch.equal(rows, same_rows)
    assert (rows[: mix.counts(40)["glyphs"]] < 62).all()
    assert not torch.equal(first, Batches(pool, mix, 40, seed=4).draw()[0])
    with pytest.raises(ParameterError, match="no room for 7 sources"):
        mix.counts(4)


def test_a_pool_limits_pictures_per_concept_and_knows_its_content():
    pool = toy_pool()
    pictures, rows = pool.limited("mnist", 3)
    assert len(pictures) == 6
    assert torch.equal(rows.bincount()[-2:], torch.tensor([3, 3]))
    assert len(pool.limited("mnist", None)[0]) == 8
    before = pool.fingerprint()
    assert before == toy_pool().fingerprint()
    pool.pictures["mnist"][0, 0, 0, 0] ^= 1
    assert pool.fingerprint() != before


# captions, loss, stages


def test_captions_of_one_concept_are_not_each_others_negatives():
    same = captions.same_concept(["three", "cow", "three", "cat"])
    assert same.nonzero().tolist() == [[0, 2], [2, 0]]
    bank = torch.eye(4)
    bank[2] = bank[0]  # another caption of the same concept with the very same embedding
    scale = torch.tensor(10.0)
    picture, row = torch.tensor([[5.0, 0, 0, 0]]), torch.tensor([0])
    masked = stages.bank_loss(picture, row, bank, same, scale)
    assert float(masked) == pytest.approx(np.log(1 + 2 * np.exp(-10)), rel=2e-3)
    unmasked = stages.bank_loss(picture, row, bank, torch.zeros_like(same), scale)
    assert float(unmasked) == pytest.approx(np.log(2 + 2 * np.exp(-10)), rel=2e-3)


def test_glyph_concepts_follow_the_drawn_characters():
    names = [concept.name for concept in captions.glyph_concepts()]
    assert len(names) == len(glyphs.CHARACTERS) == 62
    assert (names[3], names[10], names[61]) == ("three", "capital A", "small z")
    assert captions.glyph_concepts()[3].captions[0] == "the digit three"


def test_no_caption_is_a_prompt_of_the_heads_but_the_capital_letters():
    metadata = heads.read_metadata(DATA / "heads.safetensors")
    import json

    prompts = {
        prompt.rstrip(".").lower()
        for task, facts in metadata.items()
        if task not in ("encoder", "format")
        for row in heads.prompts(json.loads(facts))
        for prompt in row
    }
    kinds = {"mnist": captions.DIGITS, "fashion": captions.FASHION, "animals": captions.ANIMALS,
             "landsat": captions.LANDSAT.values(), "textures": captions.TEXTURES.values()}  # fmt: skip
    texts = [c.captions for kind, words in kinds.items() for c in (captions.concept(kind, w) for w in words)]
    assert not prompts & {caption.lower() for row in texts for caption in row}


def test_the_learning_rate_warms_up_and_ends_near_zero():
    rates = [stages.rate(step, 50, 10) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[-1] < 0.01
    assert stages.rate(0, 120, 0) == 1


class TinyTower(torch.nn.Module):
    """Has the three names that a stage uses, and nothing else of the real model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vision_model = torch.nn.Module()
        self.vision_model.linear = torch.nn.Linear(3, 6)
        self.vision_model.forward = lambda pixel_values: SimpleNamespace(
            pooler_output=self.vision_model.linear(pixel_values.mean(dim=(2, 3)))
        )
        self.visual_projection = torch.nn.Linear(6, 5, bias=False)

    def forward(self, pixel_values):
        return SimpleNamespace(image_embeds=self.visual_projection(self.vision_model(pixel_values).pooler_output))


def run_stage(name, bank_value=None):
    pool, stage, model = toy_pool(), stages.STAGES[name], TinyTower()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    bank = torch.nn.functional.normalize(torch.randn((len(pool.names), 3, 5), generator=seeded()), dim=-1)
    if bank_value is not None:
        bank = torch.full_like(bank, bank_value)
    scale, loss = stages.train_stage(
        name, model, Batches(pool, stage.mix, 64, 0), bank, captions.same_concept(pool.names),
        seed=0, steps_scale=0.03 if name == "2" else 0.002, say=lambda line: None,
    )  # fmt: skip
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    return scale, loss, moved, model


def test_the_first_stage_trains_everything_and_the_last_the_projection_alone():
    scale, loss, moved, model = run_stage("1a")
    assert moved == {"vision_model.linear.weight", "vision_model.linear.bias", "visual_projection.weight"}
    assert (scale, loss) == run_stage("1a")[:2]
    scale, loss, moved, model = run_stage("2")
    assert moved == {"visual_projection.weight"}
    assert scale == pytest.approx(30, rel=0.05)
    assert float(model.visual_projection.weight.detach().std()) == pytest.approx(6**-0.5, rel=0.5)


def test_a_loss_that_is_no_number_ends_the_stage():
    with pytest.raises(NonFiniteError, match="stage 1a is nan at step 0; no weights were written"):
        run_stage("1a", bank_value=float("nan"))
