"""The model card of a saved fusion: what it was made from, how, and what it scored."""

from __future__ import annotations

import json

from torch import nn

from fusionlib.core import Record


def model_card(model: nn.Module, record: Record | None) -> str:
    """The text of a README.md in Markdown, with the record's method, hyper-parameters, inputs and metrics."""
    lines = [
        "# A fused model",
        "",
        f"Class: `{type(model).__name__}`. Written by fusionlib; read it with `fl.load`.",
        "",
    ]
    if record is None:
        return "\n".join([*lines, "No measurement was passed when it was saved."]) + "\n"
    lines += [
        f"- method: `{record.method}` {json.dumps(record.hyperparameters)}",
        f"- hyper-parameters selected on: {record.selected_on or 'nothing'}",
        f"- information used beyond the weights: {', '.join(record.needs) or 'none'}",
        f"- made from: `{record.backbone}`, fine-tuned ({record.tuning}, seed {record.seed})",
        f"- tasks: {', '.join(record.tasks)}",
        f"- checkpoints and data: {record.provenance['suite']}",
        "",
        f"| task | accuracy, {record.split} | right | of |",
        "| --- | --- | --- | --- |",
        *(f"| {task} | {right / total:.4f} | {right} | {total} |" for task, (right, total) in record.counts.items()),
        f"| average | {record.average:.4f} | | |",
    ]
    return "\n".join(lines) + "\n"
