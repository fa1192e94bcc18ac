"""What every connector must do, as tests. A connector's test class inherits them and gives the two fixtures.

``site``: the connector. ``bench``: makes tickets; the dataset *quick* ends well at once, *lasts* goes on for two
minutes, *fails* ends with exit code 24 (WRONG_LABEL) and a sentence that names case BRATS_007.
"""

from __future__ import annotations

import pytest

from fedportal.connectors.base import Connector, RunState
from tests.trainer_process.bench import Bench, wait_for
from trainer.contract import Exit, LaunchTicket

LOST = "fp-abcd-r1-mainz-a9"


class ConnectorContract:
    seconds = 30.0
    """How long a quick run may take at this kind of site."""

    @pytest.fixture
    def site(self) -> Connector:
        raise NotImplementedError

    def over(self, site: Connector, ticket: LaunchTicket) -> RunState:
        wait_for(lambda: site.poll(ticket.run).state.is_over, seconds=self.seconds)
        return site.poll(ticket.run).state

    def running(self, site: Connector, ticket: LaunchTicket) -> None:
        wait_for(lambda: site.poll(ticket.run).state is RunState.RUNNING, seconds=self.seconds)

    def test_a_run_succeeds_and_leaves_its_manifest(self, site: Connector, bench: Bench) -> None:
        ticket = bench.ticket("quick")
        assert site.launch(ticket) is True
        assert self.over(site, ticket) is RunState.SUCCEEDED
        assert site.poll(ticket.run).exit_code == 0
        assert bench.manifest(ticket).exit_code == 0

    def test_launching_twice_launches_once(self, site: Connector, bench: Bench) -> None:
        ticket = bench.ticket("lasts")
        assert [site.launch(ticket), site.launch(ticket)] == [True, False]
        self.running(site, ticket)
        assert site.launch(ticket) is False

    def test_a_run_that_is_over_is_not_launched_again(self, site: Connector, bench: Bench) -> None:
        for ticket in (bench.ticket("quick", attempt=1), bench.ticket("fails", attempt=2)):
            site.launch(ticket)
            state = self.over(site, ticket)
            assert site.launch(ticket) is False
            assert site.poll(ticket.run).state is state

    def test_a_failed_run_tells_code_and_reason(self, site: Connector, bench: Bench) -> None:
        ticket = bench.ticket("fails")
        site.launch(ticket)
        assert self.over(site, ticket) is RunState.FAILED
        status = site.poll(ticket.run)
        assert status.exit_code == Exit.WRONG_LABEL
        assert "BRATS_007" in status.message

    def test_an_unknown_run_is_lost(self, site: Connector) -> None:
        assert site.poll(LOST).state is RunState.LOST

    def test_a_cancelled_run_is_over_when_cancel_returns(self, site: Connector, bench: Bench) -> None:
        ticket = bench.ticket("lasts")
        site.launch(ticket)
        self.running(site, ticket)
        site.cancel(ticket.run)
        assert site.poll(ticket.run).state is RunState.CANCELLED
        site.cancel(ticket.run)
        assert site.poll(ticket.run).state is RunState.CANCELLED
        assert site.launch(ticket) is False

    def test_cancelling_what_has_ended_or_never_was_changes_nothing(self, site: Connector, bench: Bench) -> None:
        site.cancel(LOST)
        assert site.poll(LOST).state is RunState.LOST
        ticket = bench.ticket("quick")
        site.launch(ticket)
        self.over(site, ticket)
        site.cancel(ticket.run)
        assert site.poll(ticket.run).state is RunState.SUCCEEDED

    def test_another_attempt_is_another_run(self, site: Connector, bench: Bench) -> None:
        first, second = bench.ticket("lasts", attempt=1), bench.ticket("quick", attempt=2)
        assert site.launch(first)
        self.running(site, first)
        site.cancel(first.run)
        assert site.launch(second)
        assert self.over(site, second) is RunState.SUCCEEDED
        assert site.poll(first.run).state is RunState.CANCELLED
        site.cancel(first.run)
        assert site.poll(second.run).state is RunState.SUCCEEDED

    def test_the_log_is_read_on_from_an_offset(self, site: Connector, bench: Bench) -> None:
        ticket = bench.ticket("quick")
        assert site.logs(ticket.run).text == ""
        site.launch(ticket)
        self.over(site, ticket)
        wait_for(lambda: "run ends" in site.logs(ticket.run).text)
        chunk = site.logs(ticket.run)
        assert "scripted work: quick" in chunk.text
        rest = site.logs(ticket.run, offset=chunk.next_offset)
        assert (rest.text, rest.next_offset) == ("", chunk.next_offset)
        assert site.logs(ticket.run, offset=3).text == chunk.text[3:]
        assert ticket.key not in chunk.text
        assert "X-Amz" not in chunk.text

    def test_a_check_is_a_report_of_steps(self, site: Connector) -> None:
        report = site.check()
        assert report.steps
        assert all(step.message for step in report.steps)
        failed = [step for step in report.steps if step.ok is False]
        assert all(step.remedy for step in failed)
        assert report.ok is not bool(failed)
