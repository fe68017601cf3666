"""SPECs, several files as one dataset, what describes them, and runs that leave bad rows out."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_fast.errors import CheckpointError, DataError, OwlError, ParameterError, Reason, TooManyBadRows
from owl_fast.images import ImageProcessor
from owl_fast.training import (
    EncodedSample,
    OptimizerSettings,
    Sample,
    Trainer,
    TrainSettings,
    encode_sample,
    stage2,
)
from owl_fast.training.bad_rows import find_bad_rows, leave_out_bad_rows
from owl_fast.training.datasets import (
    ReadOptions,
    as_sources,
    find_files,
    open_dataset,
    open_datasets,
    split_weight,
)
from owl_fast.training.ranks import Ranks
from owl_fast.training.read_ahead import read_batches
from owl_fast.training.sources import DrawPlan
from owl_fast.training.updates import UpdateReader
from tests.training.data_files import picture_bytes, write_lines, write_picture, write_tar
from tests.training.owls import ROWS, small_owl, weights


def test_weights_of_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:3").touch()
    assert split_weight("a:3") == ("a:3", None)
    assert split_weight("b.json:0.25") == ("b.json", 0.25)
    assert split_weight("b.json:x") == ("b.json:x", None)
    assert split_weight("b.json") == ("b.json", None)
    for weight in ("0", "-1", "nan", "inf"):
        with pytest.raises(DataError, match="wanted a number above 0"):
            split_weight(f"b.json:{weight}")


def test_files_of_specs(tmp_path: Path) -> None:
    for name in ("00.tar", "01.tar", "02.tar", "x.json", "[y].json"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()

    def names(pattern: str) -> list[str]:
        return [path.name for path in find_files(f"{tmp_path}/{pattern}")]

    assert names("*.tar") == ["00.tar", "01.tar", "02.tar"]
    assert names("{01..02}.tar") == ["01.tar", "02.tar"]
    assert names("{x.json,0{0,2}.tar}") == ["00.tar", "02.tar", "x.json"]
    assert names("[y].json") == ["[y].json"]
    for pattern, said in (
        ("{00..04}.tar", r"03\.tar: no such file"),
        ("*.csv", r"\*\.csv: no such file"),
        ("sub", r"a folder; name its files, as in .*sub/\*\.jsonl"),
        ("{5..1}.tar", "that goes up"),
        ("{0..999999}.tar", "at most"),
        ("{0..9999}{0..9999}.tar", "more than 100000 files"),
    ):
        with pytest.raises(DataError, match=said):
            names(pattern)


def test_files_are_one_dataset(tmp_path: Path) -> None:
    for number in range(3):
        rows = [{"instruction": f"{number} {row}", "output": "x"} for row in range(number)]
        write_lines(tmp_path / f"{number}.jsonl", *rows)
    dataset = open_dataset(f"{tmp_path}/*.jsonl")
    assert [sample.messages[0]["content"] for sample in map(dataset.__getitem__, range(3))] == [
        "1 0",
        "2 0",
        "2 1",
    ]
    assert (dataset.name, dataset.format, dataset.groups) == ("*.jsonl", "alpaca", None)
    with pytest.raises(DataError, match="1 file\\(s\\) without a row"):
        open_dataset(f"{tmp_path}/0.jsonl")


def test_sources_have_weights_and_names(tmp_path: Path) -> None:
    for folder, rows in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        write_lines(tmp_path / folder / "x.jsonl", *[{"instruction": "i", "output": "o"}] * rows)
    paths = [f"{tmp_path}/{folder}/x.jsonl" for folder in "ab"]
    sources = as_sources(open_datasets(paths))
    assert [(s.name, s.weight, s.size) for s in sources] == [("x.jsonl", 3.0, 3), ("x.jsonl (2)", 5.0, 5)]
    sources = as_sources(open_datasets([paths[0], f"{paths[1]}:0.5"]))
    assert [s.weight for s in sources] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "lava"}, "wanted one of webdataset, coco"),
        ({"format": "llava", "columns": {"image": "x"}}, "columns are named, but"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        ReadOptions(**options)


def test_a_forced_format_reads_what_sniffing_would_not(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"conversations": [{"from": "human", "value": "x"}]})
    assert open_dataset(str(path)).format == "sharegpt"
    assert open_dataset(str(path), ReadOptions(format="llava")).format == "llava"
    other = write_lines(tmp_path / "b.jsonl", {"prompt": "x"}, "broken")
    with pytest.raises(
        DataError, match=r"none of the known formats fits \('prompt'\); name one with --format"
    ):
        open_dataset(str(other))


def test_changed_data_is_described_differently(tmp_path: Path) -> None:
    """Text: any byte. Tars: the list of members, the size and the time."""
    text = write_lines(tmp_path / "a.jsonl", {"instruction": "abc", "output": "o"})
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": b"picture", "a.txt": b"words"})
    for path, change in (
        (text, lambda data: data.replace(b"abc", b"abd")),
        (text, lambda data: data + b"\n"),
        (tar, lambda data: data.replace(b"words", b"sword")),
        (tar, lambda data: data.replace(b"a.txt", b"a.TXT")),
    ):
        before, data = open_dataset(str(path)).describe(), path.read_bytes()
        assert open_dataset(str(path)).describe() == before
        json.dumps(before)
        stamp = path.stat().st_mtime_ns
        if b"TXT" not in change(data):
            path.write_bytes(change(data))
            os.utime(path, ns=(stamp, stamp + 1))
            assert open_dataset(str(path)).describe() != before
        path.write_bytes(data)
        os.utime(path, ns=(stamp, stamp))
        assert open_dataset(str(path)).describe() == before


# --- bad rows ---------------------------------------------------------------------------------------------


class Words:
    """A tokenizer of letters, for a model with 32 ids."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str, *, literal: bool) -> list[int]:
        return [3 + ord(letter) % 29 for letter in text]


PROCESSOR = ImageProcessor(size=8)


def encode(sample: Sample) -> EncodedSample:
    look = partial(PROCESSOR, training=True)
    return encode_sample(sample, Words(), ROWS, 200, look, cut_answers=False)  # type: ignore[arg-type]


def good_row(number: int) -> dict[str, Any]:
    answer = f"Number {number}."
    if number % 3:
        return {"image": [f"{number % 4}.png"], "text": f"Human: <image>\nHuman: What?\nAI: {answer}"}
    return {"text": f"Human: Count {number}\nAI: {answer}"}


def bad_rows(folder: Path) -> dict[str | dict[str, Any], Reason]:
    """A row of every kind of trouble."""
    (folder / "cut.png").write_bytes(picture_bytes(300)[:-30])
    (folder / "folder.png").mkdir()
    asked = {"text": "Human: <image>\nHuman: What?\nAI: x"}
    rows: list[tuple[str | dict[str, Any], Reason]] = [
        ('{"text": "Human: x\\nAI: ', Reason.NOT_JSON),
        ("\x00\x01\x02", Reason.NOT_JSON),
        ({"txt": "Human: x\nAI: y"}, Reason.WRONG_KEYS),
        ({"text": 5}, Reason.WRONG_KEYS),
        ({**asked, "image": ["0.png", "1.png"]}, Reason.PICTURE_COUNT),
        ({**asked, "image": ["nowhere.png"]}, Reason.MISSING_PICTURE),
        ({**asked, "image": ["cut.png"]}, Reason.BROKEN_PICTURE),
        ({**asked, "image": ["folder.png"]}, Reason.BROKEN_PICTURE),
        ({**asked, "image": ["../0.png"]}, Reason.OUTSIDE_ROOT),
        ({"text": "Human: x"}, Reason.NO_ANSWER),
        ({"text": f"Human: {'x' * 300}\nAI: y"}, Reason.ALL_MASKED),
        ({"text": f"Human: x\nAI: {'y' * 200}"}, Reason.TOO_LONG),
    ]
    return {json.dumps(row) if isinstance(row, dict) else row: reason for row, reason in rows}


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path, dict[str, Reason]]:
    """The same rows without and with bad ones among them, in two folders with the same pictures."""
    for folder in ("clean", "dirty"):
        for number in range(4):
            write_picture(tmp_path / folder / f"{number}.png", number * 50)
    bad = bad_rows(tmp_path / "dirty")
    good = [json.dumps(good_row(number)) for number in range(150)]
    mixed: list[str] = list(good)
    rng = random.Random(4)
    for row in bad:
        mixed.insert(rng.randrange(1, len(mixed)), row)
    return (
        write_lines(tmp_path / "clean/a.jsonl", *good),
        write_lines(tmp_path / "dirty/b.jsonl", *mixed),
        {f"{tmp_path}/dirty/b.jsonl:{mixed.index(row) + 1}: ": reason for row, reason in bad.items()},
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_found_and_counted(both: tuple[Path, Path, dict[str, Reason]], workers: int) -> None:
    clean, dirty, bad = both
    found = find_bad_rows(open_dataset(str(dirty)), encode, workers=workers, keep=99, progress=False)
    assert [
        message[: len(name)] for message, name in zip(found.first, sorted(bad, key=_line), strict=True)
    ] == sorted(bad, key=_line)
    wanted = list(map(str, bad.values()))
    assert found.counts == {reason: wanted.count(reason) for reason in wanted}
    assert len(found.indices) == len(bad) == 12
    assert not find_bad_rows(open_dataset(str(clean)), encode, workers=workers, progress=False).indices


def _line(name: str) -> int:
    return int(name.split(":")[-2])


def batches(sources: Sequence[Any], workers: int = 0, steps: range = range(8)) -> list[Any]:
    reader = UpdateReader(DrawPlan(sources, seed=3), 24, 10, ROWS, encode, Ranks())
    numbers = range(reader.of_update(steps.start).start, reader.of_update(steps.stop).start)
    return list(read_batches(reader, numbers, workers, 60))


def assert_same_batches(one: list[Any], two: list[Any]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.packed.token_ids, b.packed.token_ids)
        assert torch.equal(a.targets, b.targets)
        assert (a.pixels is None) == (b.pixels is None)
        assert a.pixels is None or torch.equal(a.pixels, b.pixels)


def test_leaving_out_equals_a_run_on_the_clean_rows(
    both: tuple[Path, Path, dict[str, Reason]], tmp_path: Path
) -> None:
    clean, dirty, bad = both
    cleaned = leave_out_bad_rows(open_dataset(str(dirty)), encode, cap=0.1, workers=0, progress=False)
    ours, theirs = (as_sources([dataset]) for dataset in (cleaned, open_dataset(str(clean))))
    wanted = batches(theirs)
    assert_same_batches(batches(ours), wanted)
    assert_same_batches(batches(ours, workers=2), wanted)
    assert_same_batches(batches(ours, steps=range(3, 8)), wanted[3 * 3 :])
    described = ours[0].describe()["data"]
    assert sum(described["left_out"].values()) == len(bad)

    settings = TrainSettings(steps=2, batch=8, optimizer=OptimizerSettings(lr=1e-2), progress=False)
    models = [small_owl(), small_owl()]
    for number, sources in enumerate((ours, theirs)):
        Trainer(models[number], stage2(), sources, settings, tmp_path / str(number), encode=encode).run()
    trained = [weights(model) for model in models]
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_a_cap_on_bad_rows(both: tuple[Path, Path, dict[str, Reason]]) -> None:
    dirty = both[1]
    dataset = open_dataset(str(dirty))
    assert len(leave_out_bad_rows(dataset, encode, cap=12 / 162, workers=0, progress=False)) == 150
    with pytest.raises(
        TooManyBadRows, match=r"12 bad among 162 of 162 rows .*7\.40%.*the first: .*b\.jsonl:"
    ):
        leave_out_bad_rows(dataset, encode, cap=0.074, workers=0, progress=False)
    with pytest.raises(TooManyBadRows, match=r"bad among 64 of 162 rows .*0\.10%"):
        leave_out_bad_rows(dataset, encode, workers=0, progress=False)


def test_a_bad_row_stops_a_run_that_does_not_skip(both: tuple[Path, Path, dict[str, Reason]]) -> None:
    _, dirty, bad = both
    with pytest.raises(DataError) as error:
        batches(as_sources([open_dataset(str(dirty))]))
    assert any(name in str(error.value) for name in bad)


def test_shards_are_visited_in_turn_and_resumed_exactly(tmp_path: Path) -> None:
    """The order is a pure function of seed, epoch and index, whatever reads it."""
    for shard in range(9):
        parts = {f"{n}.png": picture_bytes(shard * 10 + n) for n in range(shard + 1)}
        texts = {f"{n}.txt": f"shard {shard} sample {n}".encode() for n in range(shard + 1)}
        write_tar(
            tmp_path / f"{shard}.tar", {name: {**parts, **texts}[name] for name in sorted({**parts, **texts})}
        )
    sources = as_sources([open_dataset(f"{tmp_path}/{{0..8}}.tar")])
    assert (sources[0].size, list(sources[0].groups or [])) == (45, list(range(1, 10)))
    wanted = batches(sources)
    assert_same_batches(batches(sources, workers=2), wanted)
    assert_same_batches(batches(sources, steps=range(5, 8)), wanted[5 * 3 :])
    plan = DrawPlan(sources, seed=3)
    epochs = [[plan(draw)[1] for draw in range(start, start + 45)] for start in (0, 45)]
    assert all(sorted(epoch) == list(range(45)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_shards_without_their_bad_rows_keep_their_sizes(tmp_path: Path) -> None:
    picture = picture_bytes()
    write_tar(
        tmp_path / "0.tar",
        {"a.png": picture, "a.txt": b"x", "b.txt": b"no picture", "c.png": picture, "c.txt": b"y"},
    )
    write_tar(tmp_path / "1.tar", {"d.txt": b"no picture", "e.png": picture, "e.txt": b"z"})
    dataset = open_dataset(f"{tmp_path}/*.tar")
    cleaned = leave_out_bad_rows(dataset, encode, cap=0.5, workers=0, progress=False)
    assert cleaned.groups == [2, 1]
    assert [cleaned[index].text for index in range(3)] == ["x", "y", "z"]
    assert cleaned.describe()["left_out"] == {"missing picture": 2}


def test_a_run_is_not_resumed_on_changed_data(
    both: tuple[Path, Path, dict[str, Reason]], tmp_path: Path
) -> None:
    clean = both[0]
    settings = TrainSettings(steps=4, batch=4, save_every=2, progress=False)

    def trainer() -> Trainer:
        return Trainer(
            small_owl(),
            stage2(),
            as_sources([open_dataset(str(clean))]),
            settings,
            tmp_path / "run",
            encode=encode,
        )

    trainer().run(until=2)
    assert trainer().step == 2
    text = clean.read_text()
    for changed in (text.replace("Number 7.", "Number 8.", 1), text[: text.rindex("{")]):
        clean.write_text(changed)
        with pytest.raises(CheckpointError, match="a run resumes only on the data it began with"):
            trainer()
    clean.write_text(text)
    assert trainer().step == 2


def test_a_dead_process_is_one_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *[{"instruction": "i", "output": "o"}] * 200)

    def die(sample: object) -> None:
        os._exit(9)

    with pytest.raises(OwlError, match="a process that read data was killed"):
        find_bad_rows(open_dataset(str(path)), die, workers=2, progress=False)
