"""Telling the portal: in batches, over an outage, and never at the expense of the run."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedportal.connectors.weed import free_port
from tests.trainer_process.bench import Ear, wait_for
from trainer import reporting
from trainer.contract import MetricRecord, Phase, metric_from_json, records_in_log
from trainer.reporting import BATCH, Log, Reporter

RECORD = MetricRecord(Phase.TRAIN, "loss", 0.5, step=1, progress=0.1)


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    yield ear
    ear.close()


def reporter(folder: Path, url: str) -> Reporter:
    return Reporter("fp-abcd-r1-mainz-a1", log=Log(folder / "log.txt"), url=url, token="t")


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def test_records_arrive_while_the_run_works_and_finished_comes_last(tmp_path: Path, ear: Ear) -> None:
    report = reporter(tmp_path, ear.url)
    report.metric(RECORD)
    wait_for(lambda: ear.records)
    assert not ear.finished
    report.metric(replace(RECORD, step=2))
    report.finish()
    assert [record["step"] for record in ear.records] == [1, 2]
    assert [post["finished"] for post in ear.posts][-1] is True
    assert sum(post["finished"] for post in ear.posts) == 1
    assert {metric_from_json(record).name for record in ear.records} == {"loss"}
    assert set(ear.tokens) == {"Bearer t"}


def test_many_records_travel_in_batches_in_order(tmp_path: Path, ear: Ear) -> None:
    report = reporter(tmp_path, ear.url)
    for step in range(2 * BATCH + 10):
        report.metric(replace(RECORD, step=step))
    report.finish()
    assert [record["step"] for record in ear.records] == list(range(2 * BATCH + 10))
    assert max(len(post["records"]) for post in ear.posts) <= BATCH
    assert ear.posts[-1]["finished"] is True


def test_an_outage_loses_no_record_and_doubles_none(tmp_path: Path, ear: Ear) -> None:
    ear.answers = [503, 500, 429]
    report = reporter(tmp_path, ear.url)
    for step in range(5):
        report.metric(replace(RECORD, step=step))
        time.sleep(0.05)
    report.finish()
    assert [record["step"] for record in ear.records] == list(range(5))
    assert ear.finished
    assert "records wait" in log_of(tmp_path)


def test_what_cannot_be_posted_is_in_the_log_once_and_still_posted_later(tmp_path: Path, ear: Ear) -> None:
    ear.answers = [503, 503]
    report = reporter(tmp_path, ear.url)
    for step in range(4):
        report.metric(replace(RECORD, step=step))
    report.finish()
    assert [record["step"] for record in ear.records] == list(range(4))
    assert [record.step for record in records_in_log(log_of(tmp_path))] == list(range(4))


def test_a_run_without_a_portal_to_post_to_measures_into_its_log(tmp_path: Path) -> None:
    report = reporter(tmp_path, "")
    report.metric(RECORD)
    wait_for(lambda: records_in_log(log_of(tmp_path)))
    report.finish()
    assert [record.step for record in records_in_log(log_of(tmp_path))] == [1]
    assert records_in_log(log_of(tmp_path)[10:]) == []  # a piece that begins inside a line


def test_a_portal_that_is_away_delays_nothing_but_the_end(tmp_path: Path) -> None:
    report = reporter(tmp_path, f"http://127.0.0.1:{free_port()}/")
    start = time.monotonic()
    for step in range(1000):
        report.metric(replace(RECORD, step=step))
    working = time.monotonic() - start
    report.finish(patience=0.5)
    assert working < 1, "reporting blocked the run"
    assert len(report.for_manifest()) == 1000


def test_a_portal_that_refuses_is_not_asked_again(tmp_path: Path, ear: Ear) -> None:
    ear.answers = [401]
    report = reporter(tmp_path, ear.url)
    report.metric(RECORD)
    wait_for(lambda: not ear.answers)
    wait_for(lambda: "manifest" in log_of(tmp_path))
    report.metric(replace(RECORD, step=2))
    report.finish()
    assert ear.posts == []
    assert len(report.for_manifest()) == 2


@pytest.mark.parametrize("answer", [409, 410])
def test_a_run_that_nobody_waits_for_is_ended(tmp_path: Path, ear: Ear, answer: int) -> None:
    ear.answers = [answer]
    ended = threading.Event()
    report = Reporter("fp-abcd-r1-mainz-a1", log=Log(tmp_path / "log.txt"), url=ear.url, unwanted=ended.set)
    report.metric(RECORD)
    assert ended.wait(10)
    report.finish()


def test_a_run_that_is_through_is_not_ended(tmp_path: Path, ear: Ear) -> None:
    ended = threading.Event()
    report = Reporter("fp-abcd-r1-mainz-a1", log=Log(tmp_path / "log.txt"), url=ear.url, unwanted=ended.set)
    ear.answers = [410]
    report.finish()
    assert not ended.is_set()


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_value_that_is_no_number_is_undefined(tmp_path: Path, ear: Ear, value: float | None) -> None:
    report = reporter(tmp_path, ear.url)
    report.metric(replace(RECORD, value=value))
    report.finish()
    assert [record["value"] for record in ear.records] == [None]


def test_a_measurement_that_is_none_does_not_stop_the_run(tmp_path: Path, ear: Ear) -> None:
    report = reporter(tmp_path, ear.url)
    report.metric(replace(RECORD, value="high"))  # type: ignore[arg-type]
    report.metric(RECORD)
    report.finish()
    assert len(ear.records) == 1
    assert "could not be reported" in log_of(tmp_path)


def test_a_very_long_run_thins_its_curve_and_keeps_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "MOST_IN_MANIFEST", 100)
    report = reporter(tmp_path, "")
    for step in range(1000):
        report.metric(replace(RECORD, step=step))
    for name in ("WT", "TC"):
        report.metric(MetricRecord(Phase.LOCAL, "dice", 0.8, region=name))
    report.finish()
    kept = report.for_manifest()
    assert len(kept) <= 102
    assert [record.region for record in kept if record.phase is Phase.LOCAL] == ["WT", "TC"]
    assert kept[0].step == 0


def test_the_log_has_one_json_line_per_sentence_and_no_signed_address(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.txt")
    log.say("fetching https://store/b/k?X-Amz-Algorithm=A&X-Amz-Signature=abc\nnext", round=3, odd=object())
    (line,) = log_of(tmp_path).splitlines()
    entry = json.loads(line)
    assert entry["message"] == "fetching https://store/b/k?…\nnext"
    assert entry["round"] == 3
