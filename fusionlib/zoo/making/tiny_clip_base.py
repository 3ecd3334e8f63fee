"""Make a base model like the shipped one: ``python -m fusionlib.zoo.making.tiny_clip_base --out FOLDER``.

The shipped ``base.safetensors`` was made by the recipe's first implementation, which is not kept. This script
implements the recipe again from its description; ``README.md`` beside it gives the measured difference.

Three stages, each written to ``stage-NAME.safetensors`` and taken from there on the next call if everything
that determines it is the same: 1a and 1b train the tower against locked text embeddings; 2 draws the
projection anew and learns it from one picture per class, which loosens the alignment with text on purpose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusionlib.core import FusionError, ParameterError
from fusionlib.zoo.files import DATA, hash_files, write_atomically
from fusionlib.zoo.making.sources import SOURCES, find

VERSION = 1  # raised when the same settings give other weights


def make_base(
    out: Path,
    *,
    sources: Path | None = None,
    pack: Path = DATA,
    last: str = "2",
    steps_scale: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Make a base and write ``model.safetensors``, ``config.json`` and ``provenance.json`` to ``out``.

    Args:
        out: folder; stages found there are taken over.
        sources: folder that the source packages were unpacked into; None looks in the usual places only.
        pack: folder of the embedded suite, whose pictures are left out and whose test sets are measured.
        last: stage to stop after, "1a", "1b" or "2".
        steps_scale: factor on the number of steps of each stage; 1 is the recipe.
        seed: of the weights, the choice of pictures, and the batches.

    Returns:
        The provenance.

    Raises:
        CheckpointError: a source package or a file of the pack is missing.
        ParameterError: the stage is unknown or ``steps_scale`` is not positive.
    """
    import torch
    from safetensors.torch import save_file

    from fusionlib.zoo.making import captions, measure, stages
    from fusionlib.zoo.making.batches import Batches
    from fusionlib.zoo.making.pool import make_pool
    from fusionlib.zoo.making.text import encode

    if last not in stages.STAGES:
        raise ParameterError(f"There is no stage {last!r}. Allowed: {', '.join(stages.STAGES)}.")
    if not steps_scale > 0:
        raise ParameterError(f"steps_scale is {steps_scale}; it must be positive, and 1 is the recipe.")
    places = find(SOURCES, sources)
    out.mkdir(parents=True, exist_ok=True)
    say("reading the sources")
    pool = make_pool(places, pack, seed=seed, say=say)
    model = stages.build(seed)
    same = captions.same_concept(pool.names)
    bank: torch.Tensor | None = None
    key, scale, done = pool.fingerprint(), 0.0, {}
    for number, (name, stage) in enumerate(stages.STAGES.items()):
        key = _key(key, asdict(stage), seed, steps_scale)
        path = out / f"stage-{name}.safetensors"
        kept = _read_stage(path, key)
        if kept is None:
            if bank is None:
                say(f"encoding {3 * len(pool.captions):,} captions")
                bank = encode([text for row in pool.captions for text in row], places["text"]).view(-1, 3, 384)
            started, stage_seed = time.monotonic(), 1000 * seed + 10 * number
            batches = Batches(pool, stage.mix, 128, stage_seed)
            scale, loss = stages.train_stage(name, model, batches, bank, same,
                                             seed=stage_seed, steps_scale=steps_scale, say=say)  # fmt: skip
            accuracy = measure.zero_shot(model, pack)
            facts = {"scale": scale, "loss": loss, "seconds": time.monotonic() - started, "zero_shot": accuracy}
            metadata = {"format": "pt", "key": key, "facts": json.dumps(facts)}
            state = {n: t.contiguous() for n, t in model.state_dict().items()}
            write_atomically(path, lambda temporary, s=state, m=metadata: save_file(s, temporary, m))
        else:
            state, facts = kept
            model.load_state_dict(state)
            scale = facts["scale"]
            say(f"stage {name}: taken from {path}")
        done[name] = facts
        say(f"stage {name}: zero-shot mean {sum(facts['zero_shot'].values()) / len(measure.TASKS):.3f}")
        if name == last:
            break
    half = {n: t.half().contiguous() for n, t in model.state_dict().items()}
    model.load_state_dict({n: t.float() for n, t in half.items()})  # what is measured is what is written
    provenance = {
        "script": __name__ if __name__ != "__main__" else "fusionlib.zoo.making.tiny_clip_base",
        "version": VERSION,
        "stages": done,
        "last_stage": last,
        "steps_scale": steps_scale,
        "seed": seed,
        "zero_shot": measure.zero_shot(model, pack),
        "zero_shot_of_the_shipped_base": measure.SHIPPED,
        "sources": {name: f"{source.package} {source.version}" for name, source in SOURCES.items()},
        "pool": {"fingerprint": pool.fingerprint(), **pool.facts},
        "pack": hash_files(pack.glob("*.parquet"), pack),
        "packages": {name: version(name) for name in ("torch", "transformers", "numpy", "pillow", "safetensors")},
    }
    write_atomically(out / "model.safetensors", lambda temporary: save_file(half, temporary, {"format": "pt"}))
    _write_json(out / "config.json", _config(scale))
    _write_json(out / "provenance.json", provenance)
    say(measure.report(provenance["zero_shot"]))
    return provenance


def say(line: str) -> None:
    """Progress goes to standard error."""
    print(line, file=sys.stderr, flush=True)


def _key(previous: str, stage: dict[str, Any], seed: int, steps_scale: float) -> str:
    text = json.dumps([VERSION, previous, stage, seed, steps_scale], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_stage(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Weights and facts of a stage, if the file is there and was made by the same settings and data."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("key") != key:
            say(f"{path} was made by other settings or data and is made again")
            return None
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["facts"])  # noqa: SIM118


def _config(scale: float) -> dict[str, Any]:
    from fusionlib.zoo.making.stages import CONFIG

    kind = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    return {**kind, **CONFIG, "dtype": "float16", "logit_scale": round(scale, 4), **pictures}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if all went well, 1 with a sentence if not."""
    from fusionlib.zoo.making.stages import STAGES

    parser = argparse.ArgumentParser(prog="python -m fusionlib.zoo.making.tiny_clip_base", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; its stages are taken over")
    parser.add_argument("--sources", type=Path, help="folder that the source packages were unpacked into")
    parser.add_argument("--pack", type=Path, default=DATA, help="folder of the Parquet files and heads")
    parser.add_argument("--stage", choices=list(STAGES), default="2", help="stop after this stage (default: 2)")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor on the steps; 1 is the recipe")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        make_base(given.out, sources=given.sources, pack=given.pack, last=given.stage,
                  steps_scale=given.steps_scale, seed=given.seed)  # fmt: skip
    except FusionError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
