"""Where rows lie: kinds of files told by content, lines of errors, files that are broken or cut off."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_fast.errors import DataError, UnsupportedError
from owl_fast.training.rows import elements as element_module
from owl_fast.training.rows import open_rows
from owl_fast.training.rows.coco_rows import CocoRows
from owl_fast.training.rows.json_rows import JsonLines, JsonList
from owl_fast.training.rows.table_rows import TableRows
from owl_fast.training.rows.tar_rows import TarRows
from tests.training.data_files import write_tar

OBJECTS = st.lists(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.text(max_size=8) | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=6
        ),
        max_size=4,
    ),
    max_size=6,
)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a", '{"a": 1}\n{"a": 2}\n', JsonLines),
        ("a", '\n\n {"a": 1}', JsonLines),
        ("a", '\ufeff{"a": 1}', JsonLines),
        ("a", '{"a": broken\n{"a": 2}\n', JsonLines),
        ("a", '{"a": [broken\n{"a": 2}\n', JsonLines),
        ("a.jsonl", "broken\n{}", JsonLines),
        ("a", ' [\n{"a": 1}\n]', JsonList),
        ("a", '{"images": [], "annotations": [{"a": 1}]}', CocoRows),
        ("a", '{"images": [{"a": 1}]}\n{"annotations": [{"a": 1}]}', JsonLines),
        ("a", '{"info": {"x": []},\n "annotations": [{"a": 1}],\n"images": [{"id": 1}]}', CocoRows),
        ("a", "image,caption\n", TableRows),
        ("a", "image\tcaption, long\n", TableRows),
    ],
)
def test_kinds_are_told_by_content(name: str, text: str, kind: type, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert type(open_rows(path)) is kind


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x1f\x8b\x08rest", "compressed with gzip"),
        (b"PK\x03\x04rest", "compressed with zip"),
        (b"\x89PNG\r\n\x1a\n\0\0", "no kind of data file"),
        (b"", "empty"),
        (b"a,b,a\n", "occurs twice"),
        (b'[{"a": 1}', ":1: not JSON: it ends within the list, in or behind row 2"),
        (b'[{"a": 1},\n{"b": "', ":2: not JSON: it ends within the list, in or behind row 2"),
        (b'[{"a": 1}]\n]', ":2: not JSON"),
        (b'[{"a": 1}]\nx', ":1: not JSON: something stands behind"),
        (b'[{"a": 1}]\n{}', ":2: not JSON: something stands behind"),
        (b'[{"a": 1}\n{"a": 2}]', r":2: not JSON: between rows stands b''"),
        (b'[{"a": 1}, 7, {"a": 2}]', "between rows stands b', 7,'"),
        (b'[{"a": 1},]', "between rows stands b','"),
        (b"PAR1 no parquet", "not readable as Parquet"),
    ],
)
def test_files_that_cannot_be_read(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said) as error:
        open_rows(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_files_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read \(No such file"):
        open_rows(tmp_path / "nowhere.json")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsupportedError, match=r"pip install '\.\[parquet\]'"):
        open_rows(path)


@settings(max_examples=60, deadline=None)
@given(objects=OBJECTS, indent=st.sampled_from([None, 0, 3]), ascii=st.booleans(), chunk=st.integers(1, 40))
def test_elements_of_any_list_are_found(
    objects: list[object],
    indent: int | None,
    ascii: bool,
    chunk: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever stands in them, and wherever the file is cut into pieces while it is read."""
    path = tmp_path_factory.mktemp("list") / "a.json"
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(element_module, "CHUNK", chunk)
        rows = JsonList(path, None)
    assert len(rows) == len(objects)
    if "\ud800" <= max(text, default="") <= "\udfff":
        return  # no UTF-8, and no row that can be read
    for index, wanted in enumerate(objects):
        row = rows[index]
        assert row.fields == wanted
        line = int(row.name.rpartition(":")[2])
        before = path.read_bytes()[: rows.spans.starts[index]]
        assert line == 1 + before.count(b"\n")


def test_a_broken_element_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n {"a": nonsense},\n [1],\n {"a": "]}\\""}]')
    rows = open_rows(path)
    assert [rows[0].fields, rows[3].fields] == [{"a": 1}, {"a": ']}"'}]
    for index, said in ((1, ":2: not JSON"), (2, ":3: a list; wanted an object")):
        with pytest.raises(DataError, match=said):
            rows[index]


def test_tables_are_read_as_the_csv_module_reads_them(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [["".join(rng.choices('ab,"\n\té', k=rng.randrange(6))) for _ in range(3)] for _ in range(60)]
    for separator in (",", "\t"):
        path = tmp_path / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=separator).writerows([["a", "b", "c"], *rows])
        table = TableRows(path, None, separator)
        assert [list(table[index].fields.values()) for index in range(len(table))] == rows


def test_fields_may_be_long_and_other_readers_keep_their_limit(tmp_path: Path) -> None:
    path, before = tmp_path / "a.csv", csv.field_size_limit()
    path.write_text(f"a,b\n{'x' * 300_000},y\n")
    assert len(open_rows(path)[0].fields["a"]) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "text", ['{"a": "xxxxxxxxxxxxxxxxxxxx"}', 'a,b\n"xxxxxxxxxxxxxx\nyyyyyyyyyyyyyyy\nzzzzz']
)
def test_rows_without_end_fill_no_memory(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json_rows", "table_rows"):
        monkeypatch.setattr(sys.modules[f"owl_fast.training.rows.{name}"], "MAX_ROW_BYTES", 16)
    path = tmp_path / "a"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a:[12]: a row of more than .* MiB"):
        open_rows(path)


MEMBERS = {
    f"{number:03}.{kind}": bytes([number]) * (300 + number) for number in range(4) for kind in ("jpg", "txt")
}


def test_a_tar_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", MEMBERS).read_bytes()
    assert len(TarRows(tmp_path / "a.tar", None)) == 4
    used = len(MEMBERS) * 1024
    assert whole[used:].strip(b"\0") == b""
    path = tmp_path / "cut.tar"
    for length in [*range(600, used, 256), used, used + 100]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar: cut off or broken .* '00\d\.(jpg|txt)'"):
            open_rows(path)


def test_a_tar_with_long_names_and_a_broken_header(tmp_path: Path) -> None:
    key = "folder/" + "k" * 150
    path = write_tar(tmp_path / "a.tar", {f"{key}.jpg": b"picture", f"{key}.txt": b"words", "b.jpg": b"b"})
    first, second = (open_rows(path)[index] for index in range(2))
    assert (first.fields["jpg"], first.fields["txt"], second.fields["jpg"]) == (b"picture", b"words", b"b")
    data = bytearray(path.read_bytes())
    data[data.index(b"b.jpg")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"broken behind 'folder/k+\.txt'"):
        open_rows(path)


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    rows = open_rows(path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="the file was changed"):
        rows[1]


def test_a_few_bytes_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "some text"}\n' * 10_000)
    rows = JsonLines(path, None)
    numbers = rows.spans.starts, rows.spans.lengths, rows.spans.lines
    assert sum(sys.getsizeof(values) for values in numbers) < 30 * len(rows)
