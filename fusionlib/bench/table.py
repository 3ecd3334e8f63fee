"""A small table that is shown as semantic HTML, Markdown or a data frame. The book's style sheet dresses it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from fusionlib.bench.escape import escaped

if TYPE_CHECKING:
    import pandas as pd

# a line in which Markdown finds nothing to mark, and which does not begin as a list or a rule would
_ORDINARY = re.compile(r"(?![-+=]+(?: |$)|\d+[.)] | )(?:[^\W_]|[ .,:;%±×–−()=+-]|& )*")


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: what is shown.
        mark: "best" (bold), "second" (underlined) or "".
        number: whether it is a number, which is set flush right in figures of one width.
    """

    text: str
    mark: str = ""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the rows.

    Attributes:
        columns: titles.
        rows: one cell per column.
        groups: row indices before which a rule is drawn.
        note: one sentence below the table.
        facets: title -> one word per row, by which the book lets a reader choose rows; "" stays in every choice.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[int] = ()
    note: str = ""
    facets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        numbers = [cell.number for cell in self.rows[0]] if self.rows else [False] * len(self.columns)
        kinds = [' class="number"' if number else "" for number in numbers]
        head = "".join(
            f'<th scope="col"{kind}>{escape(title)}</th>' for kind, title in zip(kinds, self.columns, strict=True)
        )
        body = []
        for index, row in enumerate(self.rows):
            first, *rest = row
            name = f'<th scope="row">{escape(first.text)}</th>'
            rule = ' class="rule"' if index in self.groups else ""
            words = [values[index] for values in self.facets.values()]
            facets = f' data-facets="{escape(json.dumps(words))}"' if words else ""
            body.append(f"<tr{rule}{facets}>{name}{''.join(map(_html, rest))}</tr>")
        note = f'<p class="fusion-note">{escape(self.note)}</p>' if self.note else ""
        facets = f' data-facets="{escape(json.dumps(list(self.facets)))}"' if self.facets else ""
        return (
            f'<div class="fusion-table-wrap"><table class="fusion-table"{facets}>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
        )

    def _repr_markdown_(self) -> str:
        marks = {"best": "**{}**", "second": "*{}*", "": "{}"}
        lines = ["| " + " | ".join(map(markdown, self.columns)) + " |", "|" + " --- |" * len(self.columns)]
        lines += ["| " + " | ".join(marks[c.mark].format(markdown(c.text)) for c in row) + " |" for row in self.rows]
        return "\n".join(lines) + (f"\n\n{markdown(self.note)}" if self.note else "")

    def to_frame(self) -> pd.DataFrame:
        """The texts as a pandas data frame, the first column as its index."""
        import pandas as pd

        frame = pd.DataFrame([[cell.text for cell in row] for row in self.rows], columns=list(self.columns))
        return frame.set_index(self.columns[0])

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*([self.columns, *self._texts()]), strict=True)]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in self._all()]
        return "\n".join([*lines, self.note] if self.note else lines)

    def _texts(self) -> list[list[str]]:
        return [[cell.text for cell in row] for row in self.rows]

    def _all(self) -> list[Sequence[str]]:
        return [self.columns, *self._texts()]


@dataclass(frozen=True)
class Facts:
    """A box of facts: pairs of a term and what it is."""

    title: str
    facts: Sequence[tuple[str, str]]

    def _repr_html_(self) -> str:
        # A dotted name may break after a dot, rather than anywhere.
        pairs = "".join(
            f"<div><dt>{escape(term)}</dt><dd>{re.sub(r'[.](?=[a-z])', '.<wbr>', escape(text))}</dd></div>"
            for term, text in self.facts
        )
        return f'<dl class="fusion-facts" aria-label="Facts about {escape(self.title)}">{pairs}</dl>'

    def to_frame(self) -> pd.DataFrame:
        """The pairs as a pandas data frame."""
        import pandas as pd

        return pd.DataFrame(list(self.facts), columns=["fact", self.title]).set_index("fact")

    def __repr__(self) -> str:
        return "\n".join([self.title, *(f"  {term}: {text}" for term, text in self.facts)])


def mark_best(columns: Sequence[Sequence[float | None]]) -> list[list[str]]:
    """Per column "best" for the largest number and "second" for the next; None does not compete."""
    marks = []
    for values in columns:
        distinct = sorted({round(v, 6) for v in values if v is not None}, reverse=True)[:2]
        names = dict(zip(distinct, ("best", "second"), strict=False)) if len(distinct) > 1 else {}
        marks.append([names.get(round(v, 6), "") if v is not None else "" for v in values])
    return marks


def markdown(text: str) -> str:
    """The text as Markdown that shows it, in a line or a table; ordinary words and numbers as they are."""
    text = text.strip()
    return text if _ORDINARY.fullmatch(text) else escaped(text)


def _html(cell: Cell) -> str:
    inner = {"best": "<strong>{}</strong>", "second": "<u>{}</u>", "": "{}"}[cell.mark].format(escape(cell.text))
    return f'<td class="number">{inner}</td>' if cell.number else f"<td>{inner}</td>"
