"""Alpaca: the input behind the instruction, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from tests.training.data_files import open_file, read_all, turns, write_list

ROW = {"instruction": "Add.", "input": "1 and 2", "output": "3"}


def test_instructions(tmp_path: Path) -> None:
    path = write_list(tmp_path / "a.json", ROW, {"instruction": "Say hi.", "input": "", "output": "Hi."})
    both, alone = read_all(path)
    assert turns(both) == [("user", "Add.\n1 and 2"), ("assistant", "3")]
    assert turns(alone) == [("user", "Say hi."), ("assistant", "Hi.")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [({**ROW, "output": ""}, Reason.NO_ANSWER), ({**ROW, "instruction": 1}, Reason.WRONG_KEYS)],
)
def test_bad_rows(row: object, reason: Reason, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_file(write_list(tmp_path / "a.json", ROW, row))[1]
    assert error.value.reason is reason
