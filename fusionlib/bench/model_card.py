"""The model card of a saved fusion: what it was made from, how, and what it scored."""

from __future__ import annotations

import json

from torch import nn

from fusionlib.bench.escape import code, escaped
from fusionlib.core import Record


def model_card(model: nn.Module, record: Record | None) -> str:
    """The text of a README.md in Markdown, with the record's method, hyper-parameters, inputs and metrics."""
    lines = [
        "# A fused model",
        "",
        f"Class: {code(type(model).__name__)}. Written by fusionlib; read it with `fl.load`.",
        "",
    ]
    if record is None:
        return "\n".join([*lines, "No measurement was passed when it was saved."]) + "\n"
    scored = record.counts.items()
    lines += [
        f"- method: {code(record.method)} {escaped(json.dumps(record.hyperparameters))}",
        f"- hyper-parameters selected on: {escaped(record.selected_on or 'nothing')}",
        f"- information used beyond the weights: {escaped(', '.join(record.needs) or 'none')}",
        f"- made from: {code(record.backbone)}, fine-tuned ({escaped(record.tuning)}, seed {record.seed})",
        f"- tasks: {escaped(', '.join(record.tasks))}",
        f"- checkpoints and data: {escaped(record.provenance.get('suite', 'unknown'))}",
        "",
        f"| task | accuracy, {escaped(record.split)} | right | of |",
        "| --- | --- | --- | --- |",
        *(f"| {escaped(task)} | {right / total:.4f} | {right} | {total} |" for task, (right, total) in scored),
        f"| average | {record.average:.4f} | | |",
    ]
    return "\n".join(lines) + "\n"
