"""Tables: columns of CSV, TSV and Parquet, under our names and under others."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, ParameterError, Reason
from owl_fast.training.sample import Caption
from tests.training.data_files import open_file, picture_bytes, read_all, read_sample, turns, write_lines


def test_captions_of_csv_and_tsv(tmp_path: Path) -> None:
    text = 'image,caption\na.jpg,"A ""boat"",\nby night"\nb.jpg,Two\n'
    csv, tsv = tmp_path / "a.csv", tmp_path / "a.tsv"
    csv.write_text(text)
    tsv.write_text(text.replace("image,caption", "image\tcaption").replace("jpg,", "jpg\t"))
    for path in (csv, tsv):
        first, second = read_all(path)
        assert first == Caption(tmp_path / "a.jpg", 'A "boat",\nby night', record=f"{path}:2")
        assert second == Caption(tmp_path / "b.jpg", "Two", record=f"{path}:4")


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("filepath,title\na.jpg,Boat\n")
    assert read_all(path, columns={"image": "filepath", "caption": "title"}) == [
        Caption(tmp_path / "a.jpg", "Boat", record=f"{path}:2")
    ]
    with pytest.raises(DataError, match=r"none of the known formats.*filepath.*--columns"):
        open_file(path)
    with pytest.raises(DataError, match="no column 'name'; it has 'filepath', 'title'") as error:
        open_file(path, columns={"image": "name"})[0]
    assert error.value.reason is Reason.WRONG_KEYS
    with pytest.raises(ParameterError, match="wanted one of image, caption"):
        open_file(path, columns={"picture": "filepath"})


def test_columns_that_are_not_named_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image,title,question,answer,caption\na.jpg,Boat,Where?,Here.,A sea\n")
    assert read_all(path, columns={"caption": "title"}) == [
        Caption(tmp_path / "a.jpg", "Boat", record=f"{path}:2")
    ]
    sample = read_sample(path, columns={"question": "title"})
    content = [{"type": "image", "image": 0}, {"type": "text", "text": "Boat"}]
    assert turns(sample) == [("user", content), ("assistant", "Here.")]


def test_questions(tmp_path: Path) -> None:
    row = {"image": ["a.png", "b.png"], "question": "Which?", "answer": "Both.", "system": "Look."}
    sample = read_sample(write_lines(tmp_path / "a.jsonl", row))
    pictures = [{"type": "image", "image": number} for number in range(2)]
    content = [*pictures, {"type": "text", "text": "Which?"}]
    assert turns(sample) == [("system", "Look."), ("user", content), ("assistant", "Both.")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.jpg", Reason.MALFORMED),
        ("a.jpg,b,c", Reason.MALFORMED),
        ('a.jpg,"x"y', Reason.MALFORMED),
        ("a.jpg,", Reason.NO_ANSWER),
        (",words", Reason.MISSING_PICTURE),
    ],
)
def test_bad_rows(row: str, reason: Reason, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"image,caption\na.jpg,fine\n{row}\n")
    dataset = open_file(path)
    assert dataset[0].text == "fine"
    with pytest.raises(DataError) as error:
        dataset[1]
    assert str(error.value).startswith(f"{path}:3: ")
    assert error.value.reason is reason


def test_parquet_with_pictures_in_it(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures = [{"bytes": picture_bytes(number), "path": None} for number in range(5)]
    columns = {"image": pictures, "caption": [f"number {number}" for number in range(5)]}
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table(columns), path, row_group_size=2)
    dataset = open_file(path)
    assert dataset.groups == [2, 2, 1]
    assert read_all(path) == [
        Caption(picture_bytes(number), f"number {number}", record=f"{path}:row {number + 1}")
        for number in range(5)
    ]
