"""Whether labels and texts of a split are what they must be; if not, an error that names the first row that is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fusionlib.core import ParameterError

Place = Callable[[int], str]  # from the number of an example to where it is


def check_labels(labels: Any, classes: Sequence[str], what: str, place: Place) -> None:
    """Refuse labels that are no class.

    Args:
        labels: an Arrow column, or a list, of integers or bools, or of floats, which may be any finite numbers.
        classes: names of the classes.
        what: "the test split of task 'films'".
        place: see ``Place``.

    Raises: ParameterError, for null, a label out of range, NaN or Inf, and a split that has no labels at all.
    """
    import pyarrow
    from pyarrow import compute, types

    pc: Any = compute  # its functions are made when it is imported, which no type checker sees

    column = pyarrow.chunked_array([labels]) if isinstance(labels, list) else labels
    if not len(column):
        raise ParameterError(f"{what} is empty: it has no rows. Give it some, or take its file away.")
    if types.is_floating(column.type):
        wrong, allowed = pc.invert(pc.is_finite(column)), "a finite number is needed"
    elif types.is_integer(column.type) or types.is_boolean(column.type) or types.is_null(column.type):
        column = column.cast(pyarrow.int64(), safe=False)
        wrong = pc.or_(pc.less(column, 0), pc.greater_equal(column, len(classes)))
        allowed = f"its {len(classes)} classes ({_listed(classes)}) are numbered from 0 to {len(classes) - 1}"
    else:
        raise ParameterError(
            f"the labels of {what} are of the type {column.type}, not numbers of classes. Cast them with "
            'dataset.class_encode_column("label") and save the data again.'
        )
    wrong = pc.fill_null(wrong, True)
    count = pc.sum(wrong).as_py() or 0
    if not count:
        return
    first = pc.index(wrong, True).as_py()
    value = column[first].as_py()
    if count == len(column) and pc.count_distinct(column, mode="all").as_py() == 1 and value in (-1, None):
        raise ParameterError(
            f"{what} has no labels: {'all are' if count > 1 else 'the only one is'} {_said(value)}, beginning with "
            f"{place(0)}. Nothing can be counted on it. Where a benchmark keeps the labels of its test split to "
            "itself, its validation split is used: name that file test, or leave this split out."
        )
    raise ParameterError(
        f"the label of {place(first)} is {_said(value)}, and {allowed}; so it is for {count} of {len(column)} labels "
        f"of {what}. Correct them, or leave these rows out with dataset.filter(...)."
    )


def check_texts(columns: dict[str, Any], what: str, place: Place) -> None:
    """Refuse texts that can't be read: null, no texts but numbers or bytes, no UTF-8, or nothing but empty ones.

    Args:
        columns: name -> Arrow column or list.
        what: see ``check_labels``.
        place: see ``Place``.

    Raises: ParameterError.
    """
    import pyarrow
    from pyarrow import compute

    pc: Any = compute

    some = False
    for name, values in columns.items():
        column = pyarrow.chunked_array([values], pyarrow.string()) if isinstance(values, list) else values
        if column.type not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
            raise ParameterError(
                f"column {name!r} of {what} is of the type {column.type}, not of texts: {place(0)}. Cast it with "
                f'dataset.cast_column("{name}", datasets.Value("string")) and save the data again, after decoding what '
                "is bytes."
            )
        if column.null_count:
            first = pc.index(column.is_null(), True).as_py()
            raise ParameterError(
                f"{place(first)} has no {name!r}: it is null, as are {column.null_count} of {len(column)} in {what}. "
                "Fill these in, or leave the rows out with dataset.filter(...)."
            )
        row = 0
        for chunk in column.chunks:
            try:
                chunk.validate(full=True)
            except pyarrow.ArrowInvalid:
                raise _no_utf8(chunk, row, name, what, place) from None
            row += len(chunk)
        plain = column.cast(pyarrow.large_string())
        some = some or bool(pc.any(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(plain)), 0)).as_py())
    if columns and not some:
        raise ParameterError(
            f"all texts of {what} are empty, beginning with {place(0)}. Check from which column they were taken."
        )


def _no_utf8(chunk: Any, row: int, name: str, what: str, place: Place) -> ParameterError:
    import pyarrow

    for index, value in enumerate(chunk.cast(pyarrow.large_binary(), safe=False).to_pylist()):
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as error:
            return ParameterError(
                f"column {name!r} of {place(row + index)}, in {what}, is no text in UTF-8 ({error.reason}). Write the "
                "file again from texts that were read in their own encoding."
            )
    return ParameterError(
        f"column {name!r} of {what} is damaged, in {place(row)} or a row after it. Write the file again."
    )


def _said(value: Any) -> str:
    return "null" if value is None else repr(value)


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
