"""Make the base of tiny-gpt2 and the tokenizer: ``python -m fusionlib.zoo.making.tiny_gpt2_base --out FOLDER``.

The shipped base was made by this script with its defaults. What it reads, and what it must not see: ``corpus.py``
and ``leaks.py``. Numbers in bf16 differ a little from one processor to another, so another machine's base is not
the same to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusionlib.core import FusionError, ParameterError
from fusionlib.zoo.files import TEXT, hash_file, hash_files, write_atomically
from fusionlib.zoo.making.sources import TEXT_SOURCES, find

VERSION = 1  # raised when the same settings give other weights


def make_base(
    out: Path, *, sources: Path | None = None, pack: Path = TEXT, steps_scale: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Write ``tokenizer.json``, ``model.safetensors`` (float16), ``config.json`` and ``provenance.json`` to ``out``.

    Args:
        out: folder; training that was broken off there goes on.
        sources: folder that the source packages were unpacked into; None looks in the usual places only.
        pack: folder of the tasks' Parquet files, whose validation and test texts are left out.
        steps_scale: factor on the number of steps; 1 is the recipe.
        seed: of the choice of text, the weights, and the batches.

    Returns: the provenance.
    Raises: CheckpointError, if a source package or a file of the pack is missing; ParameterError.
    """
    import torch
    from safetensors.torch import save_file

    from fusionlib.zoo.making import next_word
    from fusionlib.zoo.making.tokenizing import make_tokenizer, pack_windows

    if not steps_scale > 0:
        raise ParameterError(f"steps_scale is {steps_scale}; it must be positive, and 1 is the recipe.")
    documents, mixed = read_mixed(sources, pack, seed)
    tokenizer = make_tokenizer(mixed)
    training = next_word.Training()
    training = replace(training, steps=max(1, round(training.steps * steps_scale)))
    windows = pack_windows(tokenizer, mixed, training.length)
    say(f"{len(mixed):,} documents, {windows.numel():,} tokens")
    model = next_word.build(seed)
    out.mkdir(parents=True, exist_ok=True)
    text = hash_texts(mixed)
    key = hashlib.sha256(json.dumps([VERSION, text, asdict(training), seed]).encode()).hexdigest()[:12]
    done = next_word.train(model, windows, training, seed, out / f"snapshot-{key}.safetensors", say)
    base = model.get_submodule("transformer")
    half = {name: tensor.half().contiguous() for name, tensor in base.state_dict().items()}
    write_atomically(out / "tokenizer.json", lambda temporary: tokenizer.save(str(temporary)))
    write_atomically(out / "model.safetensors", lambda temporary: save_file(half, temporary, {"format": "pt"}))
    kind = {"architectures": ["GPT2Model"], "model_type": "gpt2", "dtype": "float16"}
    write_json(out / "config.json", {**kind, **next_word.CONFIG})
    provenance = {
        "script": "fusionlib.zoo.making.tiny_gpt2_base",
        "version": VERSION,
        "training": asdict(training),
        "seed": seed,
        **done,
        "documents": {name: summary(texts) for name, texts in documents.items()},
        "tokens": windows.numel(),
        "text_sha256": text,
        "tokenizer_sha256": hash_file(out / "tokenizer.json"),
        "sources": {name: f"{source.package} {source.version}" for name, source in TEXT_SOURCES.items()},
        "pack": hash_files(pack.glob("*.parquet"), pack),
        "packages": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "bf16": torch.backends.cpu.get_cpu_capability(),
    }
    write_json(out / "provenance.json", provenance)
    return provenance


def say(line: str) -> None:
    """Progress goes to standard error."""
    print(line, file=sys.stderr, flush=True)


def summary(texts: list[str]) -> dict[str, int]:
    """How much text a source gave."""
    return {"documents": len(texts), "distinct": len(set(texts)), "characters": sum(map(len, texts))}


def hash_texts(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order, one a line."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A readable file of JSON, complete or not there at all."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def read_mixed(sources: Path | None, pack: Path, seed: int) -> tuple[dict[str, list[str]], list[str]]:
    """Source -> its texts, and all of them in one order that depends on the seed; CheckpointError if one is missing."""
    from fusionlib.zoo.making.corpus import make_documents

    places = find(TEXT_SOURCES, sources)
    say("reading the sources")
    documents = make_documents(places, pack, seed)
    mixed = [text for texts in documents.values() for text in texts]
    random.Random(seed).shuffle(mixed)
    return documents, mixed


def command(make: Callable[..., object], script: str, about: str | None, arguments: list[str] | None) -> int:
    """The command line of a script that makes a base of texts; 0 if all went well, 1 with a sentence if not."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {script}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sources", type=Path, help="folder that the source packages were unpacked into")
    parser.add_argument("--pack", type=Path, default=TEXT, help="folder of the tasks' Parquet files and the tokenizer")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor on the steps; 1 is the recipe")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        make(given.out, sources=given.sources, pack=given.pack, steps_scale=given.steps_scale, seed=given.seed)
    except FusionError as error:
        say(f"error: {error}")
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if all went well, 1 with a sentence if not."""
    return command(make_base, "fusionlib.zoo.making.tiny_gpt2_base", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
