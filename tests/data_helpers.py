"""What tests of damaged data share: the one way to read them, and the one way to be refused."""

import io
import re

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel

from fusionlib.core import FusionError
from fusionlib.zoo import inputs
from fusionlib.zoo.inputs import Preprocess
from fusionlib.zoo.own_tasks import own_task
from fusionlib.zoo.texts import read_columns

NAMES = ["bad", "good"]
LABEL = ClassLabel(names=NAMES)
SMALL = Preprocess(8, 8, None, 3, (0.5,) * 3, (0.5,) * 3)


def arrow_file(table):
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def read(path):
    """All that is read of a task's test split: its labels; FusionError."""
    task = own_task("films", path)
    if task.modality == "text":
        return read_columns(task, "test")[1].tolist()
    return [label for _, labels in inputs.pixels(task, "test", SMALL) for label in labels.tolist()]


def refused(path, *words):
    """The sentence with which the data are refused: it names the task, and has these words."""
    with pytest.raises(FusionError) as caught:
        read(path)
    message = str(caught.value)
    assert "'films'" in message and message.endswith("."), message
    for word in words:
        assert re.search(word, message), (word, message)
    return message
