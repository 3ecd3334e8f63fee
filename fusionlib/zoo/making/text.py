"""The locked text encoder: all-MiniLM-L6-v2 from a package that ships its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def encode(texts: Sequence[str], folder: Path, *, batch_size: int = 64) -> Tensor:
    """Embeddings of texts: mean over the tokens' vectors (padding left out), scaled to length 1.

    Args:
        texts: n texts; each distinct one is computed once.
        folder: the encoder's model folder.
        batch_size: texts per pass.

    Returns:
        (n, 384) float32.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model: Any = AutoModel.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    ).eval()
    distinct = sorted(set(texts), key=len)  # texts of one length together need no padding
    rows: dict[str, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            means = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            rows.update(zip(batch, torch.nn.functional.normalize(means, dim=-1), strict=True))
    return torch.stack([rows[text] for text in texts])
