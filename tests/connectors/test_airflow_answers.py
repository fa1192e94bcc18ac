"""What the Airflow connector makes of answers that a healthy Airflow does not give. Real servers: tests/airflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from fedportal.connectors.airflow import CANCELLED_NOTE, GRACE, AirflowConnector
from fedportal.connectors.airflow_api import CLOCKS_APART, DagRun, TaskRun, trainer_lines
from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteMisbehaved, SiteNotReady, SiteRefused, SiteUnreachable
from fedportal.connectors.fields import SiteContext, Unfit
from fedportal.connectors.http import MAX_BODY
from tests.connectors.scripted_server import Server
from trainer.contract import LaunchTicket

RUN = "fp-abcd-r1-mainz-a1"
Answer = tuple[int, dict[str, str], bytes]


def answer(status: int, document: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(document).encode()


VERSION = answer(200, {"version": "2.11.2"})
NOT_HERE = answer(404, {"title": "not found", "detail": None, "status": 404, "type": "about:blank"})
NO_V2 = (404, {"Content-Type": "text/html"}, b"<html>")
DAG = {"dag_id": "fp-train", "is_paused": False, "is_active": True, "tags": [{"name": "contract-1"}]}
HTML_404 = (404, {"Content-Type": "text/html"}, b"default backend - 404")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.server.shutdown()
    server.server.server_close()


def site(server: Server, *script: Answer) -> AirflowConnector:
    server.script = [NO_V2, VERSION, *script]
    return AirflowConnector(url=server.url, user="u", password="p", site=SiteContext("mainz"))


def launch(connector: AirflowConnector) -> bool:
    return connector.launch(LaunchTicket(RUN, "http://store/spec"))


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_an_airflow_in_trouble_is_asked_again_later(server: Server, status: int) -> None:
    with pytest.raises(SiteUnreachable):
        site(server, answer(status, {})).poll(RUN)


def test_a_proxys_404_does_not_make_a_run_lost(server: Server) -> None:
    with pytest.raises(SiteUnreachable, match="not Airflow"):
        site(server, HTML_404).poll(RUN)
    assert site(server, NOT_HERE).poll(RUN).state is RunState.LOST


def test_a_proxys_404_does_not_make_a_dag_missing(server: Server) -> None:
    with pytest.raises(SiteUnreachable, match="not Airflow"):
        launch(site(server, answer(200, DAG), HTML_404))


def test_an_airflow_that_was_there_is_away_when_a_proxy_answers_for_it(server: Server) -> None:
    connector = site(server, RUNNING)
    assert connector.poll(RUN).state is RunState.RUNNING
    connector._forget()
    server.script = [HTML_404]
    with pytest.raises(SiteUnreachable, match="any more"):
        connector.poll(RUN)
    with pytest.raises(SiteMisbehaved, match="no Airflow"):
        AirflowConnector(url=server.url, user="u", password="p", site=SiteContext("mainz")).poll(RUN)


def test_an_update_to_airflow_3_does_not_make_a_run_lost(server: Server) -> None:
    with pytest.raises(SiteUnreachable):
        site(server, answer(404, {"error": "/api/v1 has been removed in Airflow 3"})).poll(RUN)


def test_a_login_page_is_no_airflow(server: Server) -> None:
    server.script = [(302, {"Location": "/login"}, b"")]
    with pytest.raises(SiteRefused, match="login"):
        AirflowConnector(url=server.url, user="u", password="p", site=SiteContext("mainz")).poll(RUN)


@pytest.mark.parametrize("status", [401, 403])
def test_rights_that_are_lacking_are_a_refusal(server: Server, status: int) -> None:
    with pytest.raises(SiteRefused, match=str(status)):
        site(server, answer(status, {"title": "no", "detail": None})).poll(RUN)


def test_a_missing_dag_and_a_broken_one_are_told_apart(server: Server) -> None:
    nothing = answer(200, {"import_errors": [], "total_entries": 0})
    with pytest.raises(SiteRefused, match="has no DAG fp-train") as refusal:
        launch(site(server, NOT_HERE, nothing))
    assert "install" in refusal.value.remedy
    trace = "Traceback …\nFileNotFoundError: fedportal.json"
    broken = answer(200, {"import_errors": [{"filename": "/dags/fedportal/fedportal_dags.py", "stack_trace": trace}]})
    with pytest.raises(SiteRefused, match=r"broken at the site: FileNotFoundError: fedportal\.json"):
        launch(site(server, NOT_HERE, broken))
    with pytest.raises(SiteRefused, match="broken"):
        launch(site(server, answer(200, {**DAG, "has_import_errors": True}), broken))


def test_a_dag_of_another_contract_is_not_started(server: Server) -> None:
    with pytest.raises(SiteRefused, match="contract 7, the portal 1"):
        launch(site(server, answer(200, {**DAG, "tags": [{"name": "contract-7"}]})))
    assert [method for method, *_ in server.seen].count("POST") == 0


def test_a_run_that_exists_is_a_success_and_another_conflict_is_not(server: Server) -> None:
    run = answer(200, {"dag_run_id": RUN, "state": "running", "note": None})
    assert launch(site(server, answer(200, DAG), answer(409, {"detail": "exists"}), run)) is False
    with pytest.raises(SiteMisbehaved):
        launch(site(server, answer(200, DAG), answer(409, {"detail": "exists"}), NOT_HERE))


@pytest.mark.parametrize(
    ("probed", "field"),
    [
        ([NO_V2, VERSION, answer(200, DAG)], "logical_date"),
        ([answer(200, {"version": "3.3.0"}), answer(201, {"access_token": "t"}), answer(200, DAG)], "run_after"),
    ],
)
def test_a_start_is_dated_back_so_that_no_scheduler_waits_for_its_second(
    server: Server, probed: list[Answer], field: str
) -> None:
    connector = site(server)
    server.script = [*probed, answer(200, {"dag_run_id": RUN, "state": "queued"})]
    before = datetime.now(UTC)
    assert launch(connector)
    body = json.loads(server.bodies[-1])
    due = datetime.fromisoformat(body[field])
    assert before - CLOCKS_APART <= due <= datetime.now(UTC) - CLOCKS_APART
    assert body.get("logical_date") is None or field == "logical_date", "Airflow 3 needs no date of its own"


def test_a_start_whose_answer_is_lost_is_asked_for_again_and_found(server: Server) -> None:
    """Airflow answers 500 when another process wrote to its database first, with or without having made the run."""
    made, trouble = answer(200, {"dag_run_id": RUN, "state": "queued"}), answer(500, {"detail": "Database error"})
    assert launch(site(server, answer(200, DAG), trouble, made)) is True
    assert launch(site(server, answer(200, DAG), trouble, answer(409, {"detail": "exists"}), made)) is False
    assert [method for method, *_ in server.seen].count("POST") == 4


def test_a_dag_that_was_ready_is_looked_at_again_when_a_run_waits_or_has_failed(server: Server) -> None:
    """A start that goes well is one request, and the site has better to do than to answer more of them."""
    made, queued = answer(200, {"dag_run_id": RUN, "state": "queued"}), answer(200, QUEUED)
    paused = answer(200, {**DAG, "is_paused": True})
    connector = site(server, answer(200, DAG), made, made, queued, paused, paused, answer(200, DAG), made)
    assert launch(connector)
    assert launch(connector)
    assert [method for method, *_ in server.seen[2:]] == ["GET", "POST", "POST"]
    with pytest.raises(SiteNotReady, match="paused"):
        connector.poll(RUN)
    with pytest.raises(SiteNotReady, match="paused"):
        launch(connector)
    assert launch(connector)
    assert [method for method, *_ in server.seen[5:]] == ["GET", "GET", "GET", "GET", "POST"]

    failed = answer(200, {**QUEUED, "state": "failed"})
    connector = site(server, answer(200, DAG), made, failed, ENDED_TASK, LAST_WORDS, answer(200, DAG), made)
    before = len(server.seen)
    assert launch(connector)
    assert connector.poll(RUN).state is RunState.FAILED
    assert launch(connector)
    assert [method for method, *_ in server.seen[before + 2 :]] == ["GET", "POST", "GET", "GET", "GET", "GET", "POST"]


QUEUED = {"dag_run_id": RUN, "state": "queued", "note": None}
RUNNING = answer(200, {"dag_run_id": RUN, "state": "running", "note": None})
TROUBLE = answer(500, {"detail": "Database error"})
DONE = answer(200, {})
ENDED_TASK = answer(200, {"task_instances": [{"task_id": "train", "state": "failed", "try_number": 1}]})
LAST_WORDS = (
    200,
    {"Content-Type": "text/plain"},
    b"""[2026-01-01T00:00:00.000+0000] {subprocess.py:88} INFO - Output:
[2026-01-01T00:00:01.000+0000] {subprocess.py:93} INFO - {"message": "task begins"}
[2026-01-01T00:00:02.000+0000] {subprocess.py:93} INFO - {"message": "ended", "exit_code": 40}
""",
)


def test_the_last_words_of_a_long_log_are_found(server: Server) -> None:
    status, headers, words = LAST_WORDS
    begin, end = words[: words.rindex(b"[2026")], words[words.rindex(b"[2026") :]
    long = begin + (b"x" * 2**20 + b"\n") * (1 + MAX_BODY // 2**20) + end
    failed = site(server, answer(200, {**QUEUED, "state": "failed"}), ENDED_TASK, (status, headers, long)).poll(RUN)
    assert (failed.state, failed.exit_code) == (RunState.FAILED, 40)


@pytest.mark.parametrize("lost", range(1, 6))
def test_a_cancel_that_is_answered_with_500_is_told_until_it_is_heard(server: Server, lost: int) -> None:
    """Airflow answers so when another of its processes wrote to the database first: it was told nothing then."""
    connector = site(server, RUNNING, *[TROUBLE] * lost, DONE, DONE, ENDED_TASK, LAST_WORDS)
    connector._sleep = lambda _: None
    connector.cancel(RUN)
    told = [path for method, path, _ in server.seen if method == "PATCH"]
    assert len(told) == lost + 2
    assert told[-2].endswith("setNote")


@pytest.mark.parametrize("troubles", [(ENDED_TASK, TROUBLE, TROUBLE), (TROUBLE, TROUBLE)])
def test_a_cancel_looks_again_after_a_500(server: Server, troubles: tuple[Answer, ...]) -> None:
    connector = site(server, RUNNING, DONE, DONE, *troubles, ENDED_TASK, LAST_WORDS)
    connector._sleep = lambda _: None
    connector.cancel(RUN)
    assert len([method for method, *_ in server.seen if method == "PATCH"]) == 2, "it was told once"


def test_a_cancel_that_is_answered_with_500_for_ever_is_given_back(server: Server) -> None:
    connector = site(server, RUNNING, TROUBLE)
    clock = [0.0]
    connector._clock, connector._sleep = lambda: clock[0], lambda _: clock.__setitem__(0, clock[0] + 10)
    with pytest.raises(SiteUnreachable, match="500"):
        connector.cancel(RUN)
    assert len([method for method, *_ in server.seen if method == "PATCH"]) == 2 * (GRACE / 10 + 2)


def test_a_look_that_takes_longer_than_the_patience_is_not_the_last(server: Server) -> None:
    """The run was ended before its task began: nothing tells that but time, and a look after it."""
    never_begun = answer(200, {"task_instances": [{"task_id": "train", "state": "skipped", "try_number": 0}]})
    connector = site(server, RUNNING, DONE, DONE, never_begun)
    clock = [0.0]
    connector._sleep = lambda _: clock.__setitem__(0, clock[0] + 2 * GRACE)
    connector._clock = lambda: clock[0]
    connector.cancel(RUN)
    assert server.seen[-1][1].endswith("taskInstances")


def test_an_answer_of_another_product_is_misbehaviour(server: Server) -> None:
    with pytest.raises(SiteMisbehaved):
        site(server, answer(200, ["not", "an", "object"])).poll(RUN)


def test_of_a_tasks_log_the_trainers_lines_and_airflows_errors_are_kept() -> None:
    entries = [
        ("task.py", "INFO", "Filling up the DagBag from /secret/place"),
        ("subprocess.py", "INFO", "Running command: ['python', '-m', 'trainer.task', 'train']"),
        ("subprocess.py", "INFO", "Output:"),
        ("subprocess.py", "INFO", '{"message": "fetching the global model"}'),
        ("taskinstance.py", "ERROR", "Received SIGTERM. Terminating subprocesses."),
        ("subprocess.py", "INFO", "Command exited with return code 40"),
        ("subprocess.py", "INFO", "after the end"),
    ]
    assert trainer_lines(entries).splitlines() == [
        '{"message": "fetching the global model"}',
        "Received SIGTERM. Terminating subprocesses.",
    ]


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (" https://airflow.example/flow/ ", "https://airflow.example/flow"),
        ("https://airflow.example/api/v1", "https://airflow.example"),
        ("https://airflow.example/home", "https://airflow.example"),
    ],
)
def test_an_address_is_stored_as_the_base_of_both_interfaces(given: str, stored: str) -> None:
    assert AirflowConnector.clean_config({"url": given, "user": "u"}, {})["url"] == stored


def test_an_address_that_no_site_has_is_refused_in_its_field() -> None:
    with pytest.raises(Unfit) as unfit:
        AirflowConnector.clean_config({"url": "https://169.254.169.254", "user": "u"}, {})
    assert unfit.value.field == "url"


class Racing:
    """An Airflow 2 whose task was about to start when its run was failed: it overwrites that, and runs until told again."""

    def __init__(self) -> None:
        self.told = 0
        self.now = 0.0
        self.asked: list[float] = []

    def run(self, dag_id: str, run: str) -> DagRun:
        return DagRun(run, "running" if not self.told else "failed", CANCELLED_NOTE if self.told else "")

    def fail(self, dag_id: str, run: str, note: str) -> bool:
        self.told += 1
        return True

    def tasks(self, dag_id: str, run: str) -> list[TaskRun]:
        self.asked.append(self.now)
        state = "failed" if self.told > 1 else "skipped" if self.now < 1.0 else "running"
        return [TaskRun("train", state, 1)]

    def log(self, *_: object) -> str:
        begun = '{"message": "task begins"}\n' if self.now >= 1.0 else ""
        return begun + ('{"message": "ended", "exit_code": 40}\n' if self.told > 1 else "")

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_task_that_starts_although_its_run_was_cancelled_is_told_again() -> None:
    airflow = Racing()
    connector = AirflowConnector(
        url="http://a",
        user="u",
        password="p",
        site=SiteContext("mainz"),
        clock=lambda: airflow.now,
        sleep=airflow.sleep,
    )
    connector._api = airflow  # type: ignore[assignment]
    connector.cancel(RUN)
    assert airflow.told == 2
    assert len(airflow.asked) == len(set(airflow.asked)), "a look asks once"
