"""Make the base of tiny-t5: ``python -m fusionlib.zoo.making.tiny_t5_base --out FOLDER``.

The shipped base was made by this script with its defaults, on the text of tiny-gpt2's base (``corpus.py``), with its
tokenizer, and from its token embeddings: they know the words already, which spares most of the training. Numbers in
bf16 differ a little from one processor to another, so another machine's base is not the same to the bit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.files import TEXT, hash_file, hash_files, write_atomically
from fusionlib.zoo.making.sources import TEXT_SOURCES
from fusionlib.zoo.making.tiny_gpt2_base import command, hash_texts, read_mixed, say, summary, write_json

VERSION = 1  # raised when the same settings give other weights


def make_base(
    out: Path, *, sources: Path | None = None, pack: Path = TEXT, steps_scale: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Write ``model.safetensors`` (float16), ``config.json`` and ``provenance.json`` to ``out``.

    Args:
        out: folder; training that was broken off there goes on.
        sources: folder that the source packages were unpacked into; None looks in the usual places only.
        pack: folder of the tasks' Parquet files, whose validation and test texts are left out, and of the tokenizer.
        steps_scale: factor on the number of steps; 1 is the recipe.
        seed: of the choice of text, the weights, and the batches.

    Returns: the provenance.
    Raises: CheckpointError, if a source package or a file of the pack is missing; ParameterError.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    from fusionlib.zoo.making import text_to_text
    from fusionlib.zoo.making.exercises import make_exercises

    if not steps_scale > 0:
        raise ParameterError(f"steps_scale is {steps_scale}; it must be positive, and 1 is the recipe.")
    documents, mixed = read_mixed(sources, pack, seed)
    exercises = make_exercises(Tokenizer.from_file(str(pack / "tokenizer.json")), documents, mixed)
    training = text_to_text.Training()
    training = replace(training, steps=max(1, round(training.steps * steps_scale)))
    words = pack / "tiny-gpt2" / "model.safetensors"
    if not words.is_file():
        raise CheckpointError(f"{words} is missing: tiny-t5 begins with tiny-gpt2's embeddings. Make that base first.")
    model = text_to_text.build(seed, load_file(words)["wte.weight"].float())
    out.mkdir(parents=True, exist_ok=True)
    text = hash_texts(mixed)
    settings = [VERSION, text, hash_file(words), asdict(training), seed]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    done = text_to_text.train(model, exercises, training, seed, out / f"snapshot-{key}.safetensors", say)
    # tied weights are stored once, under the name that save_pretrained gives them
    half = {name: tensor.detach().half().contiguous() for name, tensor in model.named_parameters()}
    write_atomically(out / "model.safetensors", lambda temporary: save_file(half, temporary, {"format": "pt"}))
    kind = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "dtype": "float16"}
    write_json(out / "config.json", {**kind, **text_to_text.CONFIG})
    provenance = {
        "script": "fusionlib.zoo.making.tiny_t5_base",
        "version": VERSION,
        "training": asdict(training),
        "exercises": {name: exercise.share for name, exercise in exercises.items()},
        "seed": seed,
        **done,
        "documents": {name: summary(texts) for name, texts in documents.items()},
        "text_sha256": text,
        "tokenizer_sha256": hash_file(pack / "tokenizer.json"),
        "embeddings_sha256": hash_file(words),
        "sources": {name: f"{source.package} {source.version}" for name, source in TEXT_SOURCES.items()},
        "pack": hash_files(pack.glob("*.parquet"), pack),
        "packages": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "bf16": torch.backends.cpu.get_cpu_capability(),
    }
    write_json(out / "provenance.json", provenance)
    return provenance


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if all went well, 1 with a sentence if not."""
    return command(make_base, "fusionlib.zoo.making.tiny_t5_base", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
