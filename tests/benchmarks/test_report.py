"""The page made of result documents: what it says, and that it is one file that stands alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import compare
from benchmarks.documents import parse
from benchmarks.harness import Row, absent, row
from benchmarks.report import check_packages, page, read, write
from benchmarks.report.entries import Entry, absents, limit, shown
from benchmarks.report.formats import numbers, quantity
from benchmarks.report.styles import styles
from owl_fast.errors import OwlError

XEON = {"cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "memory_gb": 25.3}
H200 = {"cpu": "AMD EPYC 9554", "cores": 16, "memory_gb": 128.0, "gpu": "NVIDIA H200"}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}


def document(rows: Sequence[Row], device: dict[str, Any] = XEON, date: str = "2026-11-22") -> dict[str, Any]:
    return {
        "device": device,
        "versions": VERSIONS,
        "commit": "0123456789abcdef0123456789abcdef01234567+",
        "date": f"{date}T10:00:00+00:00",
        "rows": [asdict(row) for row in rows],
    }


def entries(*documents: dict[str, Any]) -> list[Entry]:
    return [Entry(row, found) for found in map(parse, documents) for row in found.rows]


def at(median: float) -> tuple[float, float, float]:
    return 0.9 * median, median, 1.1 * median


def some(scale: float = 1.0) -> list[Row]:
    """A little of every figure."""
    rows = []
    for batch in (1, 8):
        where = "throughput", f"nano float32 B{batch}-C128"
        for name, share in (("owl_fast", 0.8), ("owl_fast, int8 cache", 0.9), ("llama.cpp Q4_0", 0.5)):
            top = 100 * batch * scale
            rows.append(row(*where, name, "decoding", "tok/s", [top * share * f for f in (0.9, 1, 1.1)], top))
    for load in ("1 client", "7.2 requests/s", "9 requests/s"):
        where = "serve", f"nano float32 text, {load}"
        for percentile in ("p50", "p90", "p99"):
            rows.append(row(*where, "owl_fast", f"first token {percentile}", "ms", [12.5]))
        rows.append(row(*where, "owl_fast", "output", "tok/s", [60.0 * scale], 90.0 * scale))
    for shape in ("7b-random bfloat16 int4 C512", "7b-random bfloat16 int4 C2048"):
        rows.append(Row("memory", shape, "owl_fast", "peak memory", "GB", 15.5, 15.5, 15.5, 0.9))
    for length in (512, 1024):
        where = "memory", f"stage 2, 1024 x 8 layers, {length} rows"
        rows.append(Row(*where, "owl_fast", "peak memory", "GB", 4.5, 4.5, 4.5, 0.8))
    for name, share in (("owl_fast", 0.5), ("plain torch", 0.25)):
        rows.append(Row("ops", "rms_norm N1-H8-bf16", name, "time", "us", *at(50 / share), share))
        rows.append(Row("vision", "7b-random 1 picture", name, "latency", "us", *at(5e5 / share), share))
    rows.append(absent("ops", "rotary N8-H8", "torch.compile", "time", "us", "left out by --no-compile"))
    rows.append(row("kernel-resources", "norm BLOCK=64", "sm_90", "registers", "registers", [64]))
    return rows


@pytest.fixture(scope="module")
def one() -> str:
    return page([document(some())])


@pytest.fixture(scope="module")
def both() -> str:
    """Two machines."""
    return page([document(some()), document(some(9), H200)])


class Tags(HTMLParser):
    """What is named, referred to, loaded and run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of_it = {name: value or "" for name, value in attrs}
        self.scripts += tag == "script" or any(name.startswith("on") for name in of_it)
        self.ids += [of_it["id"]] if "id" in of_it else []
        self.links += [of_it[name] for name in ("href", "xlink:href") if name in of_it]
        self.loads += [of_it[name] for name in ("src", "srcset", "data") if name in of_it]


def table_rows(text: str) -> list[list[str]]:
    """Cells of every row of the tables, without their tags."""
    plain = re.compile(r"<[^>]+>")
    return [
        [plain.sub("", cell).strip() for cell in re.split(r"<t[dh][^>]*>", line)[1:]]
        for line in re.findall(r"<tr[^>]*>(.*?)</tr>", text, flags=re.DOTALL)
    ]


def test_the_page_stands_alone_and_its_ids_are_its_own(both: str) -> None:
    tags = Tags(both)
    assert not re.search(r"https?:", both)
    assert set(re.findall(r"url\((.)", both)) == {"#"}
    assert not tags.loads
    assert not tags.scripts
    assert len(tags.ids) == len(set(tags.ids))
    used = {link.removeprefix("#") for link in tags.links} | set(re.findall(r"url\(#(\w+)\)", both))
    assert used <= set(tags.ids)
    assert {"glance", "throughput", "serving", "memory", "operations", "first-token"} <= set(tags.ids)


def test_equal_input_gives_equal_bytes(one: str) -> None:
    assert page(json.loads(json.dumps([document(some())]))) == one


def test_every_number_of_a_row_is_in_its_table() -> None:
    peer = replace(row("load", "7b-14GB", "torch", "seconds", "s", [25.0, 26.0, 27.0]), note="cold cache")
    ours = replace(
        row("load", "7b-14GB", "owl_fast", "seconds", "s", [12.0, 13.0, 14.0]), limit_fraction=0.75
    )
    text = page([document([ours, peer])])
    commit = "0123456789+"
    where = ["load", "7b-14GB"]
    rows = table_rows(text)
    machine = "Intel Xeon, 2 cores"
    assert [
        *where,
        "owl_fast",
        "seconds",
        "12.4",
        "13.0",
        "13.6",
        "s",
        "75\u202f%",
        "",
        machine,
        commit,
        "",
    ] in rows
    times = "2.00\u202f×"
    assert [
        *where, "torch", "seconds", "25.4", "26.0", "26.6", "s", "", times, machine, commit, "cold cache"
    ] in rows  # fmt: skip


def test_the_head_names_machines_versions_commits_and_dates(both: str) -> None:
    text = both[: both.index("<main>")]
    for said in ("Intel Xeon, 2 cores", "NVIDIA H200", "AMD EPYC 9554", "25.3", "128.0", "torch 2.13.0"):
        assert said in text
    assert "0123456789+" in text
    assert "2026-11-22T10:00:00+00:00" in text


def test_each_machine_has_its_panel_side_by_side(one: str, both: str) -> None:
    throughput = both[both.index('<h2 id="throughput"') : both.index('<h2 id="serving"')]
    captions = re.findall(r"<figcaption>(.*?) <small>(.*?)</small>", throughput)
    what = "decoding, behind 128 positions"
    assert captions == [(what, "Intel Xeon, 2 cores"), (what, "NVIDIA H200")]
    assert "--columns:2" in throughput
    assert "--columns:" not in one
    assert "<small>Intel" not in one


def test_panels_of_a_group_share_their_axis(both: str) -> None:
    throughput = both[both.index('<h2 id="throughput"') : both.index('<h2 id="serving"')]
    drawn = re.findall(r"<svg.*?</svg>", throughput, flags=re.DOTALL)
    assert len(drawn) == 2
    labels = [
        re.findall(r'text-anchor: end[^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', svg) for svg in drawn
    ]
    assert labels[0]
    assert labels[0] == labels[1]


def test_figures_draw_what_they_are_for(one: str) -> None:
    for said in ("sequences at once", "requests/s offered", "positions", "rows of a step", "times the floor"):
        assert f">{said}</text>" in one
    assert "limit 500\u202fms" in one  # of the picture: a second, half of it the floor
    assert "50\u202f% of the limit" in one
    assert re.search(r"rms_norm.*?>2.00\u202f×</text>", one, flags=re.DOTALL)  # ours, in times the floor
    assert "output, 1 client" in one  # a closed loop has no place on the axis of loads


def test_absent_peers_are_listed_with_their_reasons_and_equal_ones_once() -> None:
    rows = [
        absent(
            "ops", f"linear M{size}", "owl_fast", "time", "us", f"{size}.5 GFLOP and 0.1 GB are left to GPUs"
        )
        for size in range(200)
    ]
    rows += [absent("ops", "linear M1", name, "time", "us", "not installed") for name in ("torchao", "flash")]
    found = absents(entries(document(rows)))
    assert [(a.reason, a.contenders, a.rows) for a in found] == [
        ("… GFLOP and … GB are left to GPUs", ("owl_fast",), 200),
        ("not installed", ("torchao", "flash"), 2),
    ]
    text = page([document(rows)])
    assert text.count("<li>owl_fast: … GFLOP and … GB are left to GPUs") == 1
    assert "<li>torchao; flash: not installed" in text


def test_hostile_names_stay_text() -> None:
    bad = "<script>alert('x')</script>$\\frac{1}$ & \"' onload=x </svg>"
    rows = [
        Row(
            case,
            f"{bad} B{batch}-C8" if case == "decode" else bad,
            name,
            bad,
            "tok/s",
            1,
            2,
            3,
            0.5,
            note=bad,
        )
        for case in ("decode", "memory", "ops", "vision", bad)
        for batch in (1, 2)
        for name in ("owl_fast", bad)
    ]
    raw = document(rows, {"cpu": bad, "cores": bad, "gpu": bad})
    raw["versions"], raw["commit"], raw["date"] = {bad: bad}, bad, bad
    text = page([raw, raw], compare(raw, raw))
    tags = Tags(text)
    assert not tags.scripts
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert text.count("<svg") == text.count("</svg>")


def test_cases_without_a_figure_have_a_grid_of_their_own() -> None:
    rows = [
        row("quantization", "owl-nano, 64 tokens", name, metric, unit, [value])
        for name in ("int8", "int4")
        for metric, unit, value in (("KL", "nats, mean", 0.00123), ("same top token", "share", 0.9942))
    ]
    grid = table_rows(page([document(rows)]))
    assert ["contender", "KL, nats, mean", "same top token, share"] in grid
    assert ["int8", "0.00123", "0.994"] in grid


def test_the_figures_show_the_latest_run_that_measured_ours_as_a_whole() -> None:
    where = "decode", "7b B1-C4"
    old = document([row(*where, name, "throughput", "tok/s", [5.0, 6.0]) for name in ("owl_fast", "torch")])
    new = document([row(*where, "owl_fast", "throughput", "tok/s", [8.0, 9.0])], date="2026-11-23")
    peer = document([row(*where, "torch", "throughput", "tok/s", [7.0, 8.0])], date="2026-11-24")
    elsewhere = document(some(), H200)
    found = [entry for entry in shown(entries(old, new, peer, elsewhere)) if entry.row.case == "decode"]
    assert [(entry.row.contender, entry.median) for entry in found] == [("owl_fast", 8.5)]


def test_limits_come_from_the_fraction() -> None:
    def of(case: str, unit: str) -> float | None:
        return limit(Row(case, "", "owl_fast", "m", unit, 10, 10, 10, 0.5))

    assert of("decode", "tok/s") == 20
    assert of("ops", "us") == 5
    assert of("memory", "GB") == 5
    assert of("load", "GB") == 20  # a ceiling
    assert of("kernel-resources", "KB") == 20
    assert limit(Row("ops", "", "owl_fast", "m", "us", 10, 10, 10)) is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((8.48, 8.951, 12.9), ("8.5", "9.0", "12.9")),
        ((260.5, 483.0, 496.1), ("260", "480", "500")),
        ((1401.0, 1425.4, 1440.0), ("1\u202f401", "1\u202f425", "1\u202f440")),
        ((14.4712, 14.4712, 14.4712), ("14.5",) * 3),
        ((64, 64, 64), ("64",) * 3),
        ((29.49, 29.62, 29.91), ("29.49", "29.62", "29.91")),
        ((2e-11, 4.53e-10, 3e-8), ("2e−11", "4.5e−10", "3.000e−08")),
        ((1e-20, 4.53e-10, 1.0), ("1e−20", "4.5e−10", "1.000e+00")),
        ((None, None, None), ("–",) * 3),
    ],
)
def test_numbers_have_the_digits_that_their_noise_carries(
    values: tuple[float | None, ...], told: tuple[str, ...]
) -> None:
    assert numbers(Row("c", "s", "owl_fast", "m", "ms", *values)) == told


def test_times_are_told_in_the_unit_that_fits() -> None:
    assert quantity(Row("c", "s", "owl_fast", "m", "us", 4154e3, 4230e3, 4419e3)) == "4.23\u202fs"
    assert quantity(Row("c", "s", "owl_fast", "m", "us", 20.3, 20.59, 21.83)) == "20.6\u202fµs"
    assert quantity(Row("c", "s", "owl_fast", "m", "tok/s", 8.0, 8.5, 9.0)) == "8.5\u202ftok/s"


def test_a_contender_looks_the_same_whoever_else_is_there_and_nobody_like_ours() -> None:
    names = [f"owl_fast, variant {place}" for place in range(30)] + [f"torch {place}" for place in range(30)]
    found = styles(names)
    ours = found["owl_fast"]
    assert ours == styles([])["owl_fast"]
    assert [style.name for style in found.values() if style.color == ours.color] == ["owl_fast"]
    assert found["owl_fast, variant 3"].ours
    assert not found["torch 3"].ours
    of_torch = [(s.color, s.marker) for name, s in found.items() if name.startswith("torch")]
    assert len(set(of_torch[:9])) == 9


def test_what_moved_stands_first() -> None:
    def of(p20: float, median: float, p80: float) -> dict[str, Any]:
        return document([Row("decode", "7b B1-C4", "owl_fast", "throughput", "tok/s", p20, median, p80)])

    before, after = of(9, 10, 11), of(4, 5, 6) | {"versions": {**VERSIONS, "torch": "2.14"}}
    text = page([before, after], compare(before, after))
    assert text.index('id="changes"') < text.index('<h2 id="glance"')
    assert '<span class="verdict worse">worse</span>' in text
    assert "version of torch: 2.13.0 before, 2.14 after" in text
    assert "0.50\u202f×" in text
    assert 'id="changes"' not in page([before, after])


def test_no_documents_or_one_to_compare_is_an_error() -> None:
    with pytest.raises(OwlError, match="0 documents"):
        page([])
    with pytest.raises(OwlError, match="1 documents"):
        page([document([])], [])
    assert "0 rows of 1 run" in page([document([])])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": None}, "'rows' is missing"),
        ({"device": "a GPU"}, "'device' is 'a GPU'"),
        ({"commit": 7}, "'commit' is 7"),
        ({"rows": ["x"]}, "row 0"),
        ({"rows": [{"case": "ops"}]}, "row 0.*'shape' is missing"),
        ({"rows": [asdict(Row("a", "b", "c", "d", "e")) | {"median": "10"}]}, "'median' is '10'"),
        ({"rows": [asdict(Row("a", "b", "c", "d", "e")) | {"p80": float("nan")}]}, "'p80' is nan"),
        ({"rows": [asdict(Row("a", "b", "c", "d", "e")) | {"note": None}]}, "'note' is missing"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document([]) | change))
    with pytest.raises(OwlError, match=f"other.json.*{said}"):
        read(path)


def test_files_of_earlier_days_without_newer_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    raw = document(some())
    for found in raw["rows"]:
        for name in ("rate", "rate_unit", "note", "ours"):
            del found[name]
    path.write_text(json.dumps(raw))
    assert read(path) == raw
    assert "owl_fast 2.00\u202f× as fast" in page([raw])


def test_a_missing_or_broken_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("none.json", "broken.json"):
        with pytest.raises(OwlError, match=name):
            read(tmp_path / name)


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "report.html"
    for refused in (check_packages, lambda: write(out, [document(some())])):
        with pytest.raises(OwlError, match=r"matplotlib.*pip install -e '\.\[report\]'"):
            refused()
    assert not out.exists()


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_is_the_cpus() -> None:
    rate = row("machine", "", "torch", "int8 matmul", "TOP/s", [2.0])
    assert parse(document([rate], H200)).machine == "AMD EPYC 9554, 16 cores"
    assert parse(document([], H200)).machine == "NVIDIA H200"
