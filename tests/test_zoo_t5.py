"""Text-to-text models: questions, answers and their likelihood against transformers, ties, and fine-tunes."""

import json
from dataclasses import replace

import pytest
import torch

import fusionlib as fl
from fusionlib.bench.meters import make_meter
from fusionlib.core import ParameterError
from fusionlib.ops.modules import Ensemble
from fusionlib.ops.statedict import num_parameters, tied_names
from fusionlib.zoo import files, names, prompts
from fusionlib.zoo.prompts import Prompt
from fusionlib.zoo.t5 import all_names, tiny_t5
from fusionlib.zoo.task import embedded_task
from fusionlib.zoo.texts import read_tokenizer

CPU = torch.device("cpu")
EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
pytestmark = pytest.mark.usefixtures("one_thread_home")


@pytest.fixture(scope="module")
def backbone():
    return tiny_t5()


def asked(backbone, name="topic", rows=range(9), split="val"):
    task = embedded_task(name)
    batch, labels = backbone.preprocess.examples(task, split, rows, CPU)
    return backbone.head(task, None), batch, labels


def ids_of(backbone, word):
    tokenizer = read_tokenizer(backbone.preprocess.path, backbone.preprocess.tokenizer)
    return [*tokenizer.encode(word, add_special_tokens=False).ids, 1]


@pytest.mark.parametrize("name", ["topic", "spam", "entailment"])
def test_scores_are_the_likelihoods_that_transformers_gives_each_answer_alone(backbone, name):
    head, batch, _ = asked(backbone, name)
    model = backbone.build()
    with torch.inference_mode():
        scores = head(model(**batch).logits, batch)
        for index, word in enumerate(head.answers.words):
            wanted = torch.tensor([ids_of(backbone, word)])
            for row in (0, 5):
                width = int(batch["attention_mask"][row].sum())
                loss = model(input_ids=batch["input_ids"][row : row + 1, :width], labels=wanted).loss
                assert scores[row, index].item() == pytest.approx(-loss.item() * wanted.numel(), abs=2e-4)
    lengths = {len(ids_of(backbone, word)) for word in head.answers.words}
    assert len(lengths) > 1 or name != "topic", "no task has answers of different lengths"


def test_the_loss_is_that_of_transformers(backbone):
    head, batch, labels = asked(backbone)
    model = backbone.build()
    spelt = [torch.tensor(ids_of(backbone, head.answers.words[label])) for label in labels.tolist()]
    wanted = torch.nn.utils.rnn.pad_sequence(spelt, batch_first=True, padding_value=-100)
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        ours = backbone.loss(embedded_task("topic"), head)(head(model(**batch).logits, batch), labels)
        torch.testing.assert_close(ours, model(**plain, labels=wanted).loss, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(backbone):
    head, batch, _ = asked(backbone, "reviews")
    assert batch["attention_mask"].sum(dim=1).unique().numel() > 1
    model = backbone.build()
    with torch.inference_mode():
        together, said = backbone.answer(model, head, batch)
        for row in range(9):
            _, single, _ = asked(backbone, "reviews", [row])
            alone, says = backbone.answer(model, head, single)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)
            assert says == said[row : row + 1]


@pytest.mark.parametrize("name", ["topic", "reviews"])
def test_what_is_said_is_what_generate_says(backbone, name):
    head, batch, _ = asked(backbone, name, range(24))
    model = backbone.build()
    plain = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        expected = model.generate(**plain, max_new_tokens=head.answers.longest, do_sample=False)[:, 1:]
        expected = [backbone.preprocess.say(row) for row in expected.tolist()]
        assert backbone.say(model, head, batch) == expected
        assert backbone.answer(model, head, batch)[1] == expected
        assert backbone.say(Ensemble([model, model], "logits"), head, batch) == expected
    assert len(set(expected)) > 1 or expected[0]


def test_a_question_is_the_prompt_around_the_text_and_the_prompt_is_never_cut(backbone):
    tokenizer = read_tokenizer(backbone.preprocess.path, backbone.preprocess.tokenizer)
    prompt = Prompt("first : {text_a} second : {text_b} same ?", ("no", "yes"))
    short, long = {"text_a": "a cat", "text_b": "A dog."}, {"text_a": "word " * 40 + "end", "text_b": "a dog it was"}
    one, other = prompts.encode(tokenizer, prompt, [short, long], 30)
    assert tokenizer.decode(one) == " first : a cat second : a dog. same ?"
    cut = tokenizer.decode(other)
    assert len(other) == 30 and cut.startswith(" first : word word") and "end" not in cut
    assert cut.endswith("word second : a dog it was same ?")
    _, batch, _ = asked(backbone, "spam", range(60))
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.max() == backbone.preprocess.longest == 72
    assert (batch["input_ids"].gather(1, lengths[:, None] - 1) == 1).all()
    start = tokenizer.encode("is this mail ham or spam ?").ids
    assert (batch["input_ids"][:, : len(start)] == torch.tensor(start)).all()


def test_a_prompt_that_does_not_fit_is_refused(backbone):
    reading = replace(backbone.preprocess, prompts={"spam": Prompt("{text}", ("ham", "ham"))})
    with pytest.raises(ParameterError, match="2 classes, and its prompt has the words ham, ham"):
        reading.answers(embedded_task("spam"))
    with pytest.raises(ParameterError, match=r"how task 'topic' is asked.*Allowed: spam"):
        reading.answers(embedded_task("topic"))
    with pytest.raises(ParameterError, match=r"'texts'.*Did you mean 'text'"):
        Prompt("{texts}", ("a",)).fill({"text": "x"})


def test_questions_and_answers_never_have_one_width(backbone):
    # statistics of layers' inputs leave out what the mask of the questions marks, and know it by its shape
    task = embedded_task("topic")
    width = len(backbone.preprocess.answers(task).inputs)
    lengths = [len(row) for row in backbone.preprocess.tokens(task, "val")[0]]
    _, batch, _ = asked(backbone, "topic", [lengths.index(width)])
    assert batch["decoder_input_ids"].shape[1] == width and batch["input_ids"].shape[1] == width + 1
    assert batch["attention_mask"][0].tolist() == [1] * width + [0]


def test_tied_names_share_one_tensor_and_an_own_output_layer_stays(backbone):
    assert set(tied_names(backbone.state)) == set(EMBEDDING[1:])
    assert list(backbone.state) != list(EMBEDDING) and set(backbone.state) == set(backbone.module().state_dict())
    assert num_parameters(backbone.state) == 1_968_512
    output = torch.randn_like(backbone.state["shared.weight"])
    own = all_names({"shared.weight": backbone.state["shared.weight"], "lm_head.weight": output})
    assert own["lm_head.weight"] is output and own["decoder.embed_tokens.weight"] is own["shared.weight"]
    model = replace(backbone, state={**backbone.state, "lm_head.weight": output}).build()
    assert torch.equal(model.lm_head.weight, output) and model.shared.weight is model.decoder.embed_tokens.weight
    with pytest.raises(ParameterError, match="no embedding of a T5"):
        all_names({"lm_head.weight": output})


def test_exact_match_is_counted_word_for_word():
    meter = make_meter("exact_match")
    meter.update(torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1]))
    meter.hear(["ham", "spam spam", "spam"], ["ham", "spam", "spam"])
    assert meter.result() == ((2, 3), {"exact_match": pytest.approx(2 / 3)})


def test_other_backbones_say_nothing():
    suite = fl.load_suite("tiny-clip", ["mnist"], tuning="none", device="cpu")
    batch, _ = suite.examples("mnist", "val", [0])
    with pytest.raises(ParameterError, match="tiny-clip answers with scores of classes"):
        suite.backbone.answer(suite.model(), suite.heads["mnist"], batch)


def test_every_embedded_text_task_has_a_prompt(backbone):
    for name in names.TEXT_TASKS:
        task = embedded_task(name)
        words = backbone.preprocess.answers(task).words
        assert len(words) == len(task.classes) and (name == "entailment" or words == task.classes)


def test_the_base_is_what_its_provenance_says(backbone):
    provenance = json.loads((files.TEXT / "tiny-t5" / "provenance.json").read_text())
    assert provenance["tokenizer_sha256"] == backbone.preprocess.tokenizer
    assert provenance["embeddings_sha256"] == files.hash_file(files.TEXT / "tiny-gpt2" / "model.safetensors")
    assert set(provenance["documents"]) == {"wordnet", "bible", "novels", "reviews", "food", "mails"}
    assert set(provenance["exercises"]) == {"gaps", "kind", "again", "origin"}
    assert provenance["pack"] == files.hash_files(files.TEXT.glob("*.parquet"), files.TEXT)
    assert (files.TEXT / "tiny-t5" / "model.safetensors").stat().st_size < 4e6
    assert all(torch.isfinite(tensor).all() for tensor in backbone.state.values())
