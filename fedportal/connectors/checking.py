"""What the checks of all connectors share: steps in order, and datasets as the trainer reports them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from fedportal.connectors.base import CheckStep, DatasetReport
from fedportal.connectors.errors import SiteError, SiteRefused, StoreError
from fedportal.connectors.fields import SiteContext
from fedportal.connectors.http import Http
from trainer.contract import CONTRACT_VERSION, check_name
from trainer.contract.code import code_digest

INSTALL = "Run `python -m trainer.install` at the site; docs/airflow.md says how."
COMPARE = "Compare the versions of portal and site."
SOON = 14
"""Days before its end that a certificate is worth a word."""
MANY_SERIES = 5000
"""From so many on a Kaapana's runs come near what it can hand to them."""
LEAST_FREE = 1024**3
SKEW = 60.0
"""Seconds that the clocks may differ: presigned addresses live by them."""


class Remark(Exception):
    """What a step has found is no failure, and worth doing something about."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy


watcher: ContextVar[Callable[[Sequence[CheckStep]], None] | None] = ContextVar("watcher", default=None)
"""Who is told how far a check is (set in the check's thread): the steps so far, then the one under way and those to come
with ``ok`` ``None`` and no message."""


def take_steps(*steps: tuple[str, Callable[[], str]]) -> tuple[CheckStep, ...]:
    """Take the steps (name, act) in order; what comes after a failed one is not reached.

    An act returns the sentence that says what was found, raises :class:`SiteError` with a remedy, or :class:`Remark`.
    """
    done: list[CheckStep] = []
    failed = False
    watch = watcher.get()
    for name, act in steps:
        if watch is not None and not failed:
            watch([*done, *(CheckStep(later, None, "") for later, _ in steps[len(done) :])])
        if failed:
            done.append(CheckStep(name, None, "Not reached."))
            continue
        start = time.monotonic()
        try:
            message, remedy = act(), ""
        except Remark as remark:
            message, remedy = remark.message, remark.remedy
        except SiteError as error:
            failed, message, remedy = True, error.message, error.remedy or COMPARE
        except StoreError:
            failed, message = True, "The portal's own object store does not answer as it should."
            remedy = "Start it again, or correct its settings."
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            failed, message, remedy = True, f"The site's answer makes no sense ({type(error).__name__}).", COMPARE
        done.append(CheckStep(name, not failed, message, remedy, time.monotonic() - start))
    return tuple(done)


def dataset_report(report: Mapping[str, Any]) -> DatasetReport:
    """Read a dataset as ``trainer.inspect`` describes it. Raises ``KeyError``, ``TypeError`` or ``ValueError``."""
    return DatasetReport(
        name=str(report["name"]),
        title=str(report["title"]),
        train_cases=int(report["train_cases"]),
        validation_cases=int(report["validation_cases"]),
        channels=tuple(str(channel) for channel in report["channels"]),
        labels={int(number): str(name) for number, name in report["labels"].items()},
        spacing=tuple(float(mm) for mm in report.get("spacing", ())),
        shape=tuple(int(voxels) for voxels in report.get("shape", ())),
        problems=tuple(str(problem) for problem in report.get("problems", ())),
    )


def name_step(http: Http) -> str:
    return f"Found at {', '.join(http.resolve())}."


def certificate_step(http: Http) -> str:
    try:
        expiry = http.certificate_expiry()
    except SiteRefused as refused:
        if http.verifies:
            raise
        raise Remark(f"Not verified, as it was registered. {refused.message}", remedy=refused.remedy) from refused
    if expiry is None:
        return "No TLS: right on one machine only."
    days = (expiry - datetime.now(UTC)).days
    if days < SOON:
        raise Remark(f"Valid until {expiry:%Y-%m-%d}, only {days} days more.", remedy="Let the site renew it.")
    return f"Valid until {expiry:%Y-%m-%d}."


def code_step(theirs: str, ours: str, *, what: str, remedy: str) -> str:
    """Compare the code of a site with the portal's own. Another version is no failure: the contract decides that."""
    if theirs == ours:
        return f"The site's {what} is the portal's own ({ours})."
    raise Remark(
        f"The site's {what} is of another version ({theirs or 'unknown'}) than the portal's ({ours}).", remedy=remedy
    )


def dataset_step(found: Sequence[DatasetReport], *, remedy: str, series: Mapping[str, int] | None = None) -> str:
    """Name the datasets. ``series``: how many a Kaapana has to name in the conf of each run, by dataset."""
    if not found:
        raise SiteRefused("There is no dataset.", remedy=remedy)
    text = f"{len(found)} found: {', '.join(report.name for report in found)}."
    if large := [f"{name} ({count:,})" for name, count in sorted((series or {}).items()) if count >= MANY_SERIES]:
        raise Remark(
            f"{text} So many series that the conf of a run may grow too large: {', '.join(large)}.",
            remedy="Split the dataset: a run's conf, which names every series, must stay below 1 MiB.",
        )
    return text


class TrainerWords:
    """What the trainer of a site says of itself in its run ``fp-check``, as steps of a check.

    :meth:`conf` asks, :meth:`hear` takes the answer (see ``trainer/check.py``), :meth:`heard_steps` judge it.
    """

    names_series = False
    """Whether a run's conf names the series of its dataset."""
    sees_gpus = True
    """Whether the check runs where trainings do. A Kaapana gives a GPU only to a pod that asks for it, as a training's."""
    update = INSTALL
    """How a site comes by the portal's version of the trainer."""
    offer = "Put each dataset into a folder of its own with a dataset.json."
    """How a site comes by a dataset."""

    def __init__(self, site: SiteContext) -> None:
        self._site = site
        self._nonce = secrets.token_hex(8)
        self._found: dict[str, Any] = {}
        self._asked = self._heard = 0.0
        self.datasets: list[DatasetReport] = []

    def conf(self) -> dict[str, Any]:
        """Return what the site is asked to try."""
        run = check_name(self._site.slug, time.time_ns() // 1_000_000)  # by which the portal's relay knows the site
        conf: dict[str, Any] = {"nonce": self._nonce, "contract": CONTRACT_VERSION, "run": run}
        if self._site.portal_url:
            conf["portal"] = f"{self._site.portal_url}/ui/healthz/"
        if self._site.probe is not None:
            conf["store"] = dict(self._site.probe())
        return conf

    def hear(self, document: Mapping[str, Any], *, since: float, remedy: str) -> str:
        """Keep the answer and say what the trainer is. ``since``: monotonic time of the question."""
        took = time.monotonic() - since
        self._heard = time.time()
        self._asked = self._heard - took
        self._found = dict(document)
        versions = self._found["versions"]
        lacking = [name for name, value in versions.items() if value == "missing"]
        if lacking:
            raise SiteRefused(f"The trainer lacks {', '.join(lacking)}.", remedy=remedy)
        none = "no GPU" if self.sees_gpus else "GPUs not looked at"
        gpus = ", ".join(str(gpu["name"]) for gpu in self._found["gpus"]) or none
        warm = "warm" if self._found["warm"] else "cold"
        return f"Contract {versions['contract']}, torch {versions['torch']}, {gpus}, {warm} start; answered in {took:.0f} s."

    def heard_steps(self) -> tuple[tuple[str, Callable[[], str]], ...]:
        return (
            ("Code", self._code),
            ("Key", self._key),
            ("Clock", self._clock),
            ("Disk", self._disk),
            ("Object store", self._store),
            ("Live metrics", self._portal),
            ("Datasets", self._find_datasets),
        )

    @property
    def versions(self) -> dict[str, str]:
        return dict(self._found.get("versions") or {})

    def facts(self) -> dict[str, Any]:
        return {
            name: self._found[name]
            for name in ("cpus", "threads", "gpus", "free_bytes", "code", "store")
            if name in self._found
        }

    def _code(self) -> str:
        return code_step(str(self._found.get("code") or ""), code_digest(), what="trainer", remedy=self.update)

    def _key(self) -> str:
        if not self._site.key:
            return "Not compared."
        expected = hmac.new(self._site.key, f"check:{self._nonce}".encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, str(self._found.get("proof"))):
            raise SiteRefused(
                "The site has another key than the portal has for it.",
                remedy="Copy the key from the site's page here, and run the installation at the site again with --key-file.",
            )
        return "The site has the right one."

    def _clock(self) -> str:
        at = float(self._found["at"])  # between question and answer, where the clocks agree
        skew = max(self._asked - at, at - self._heard)
        if skew > SKEW:
            raise SiteRefused(f"The site's clock is {skew:.0f} seconds off.", remedy="Let the site's machine use NTP.")
        return "The clocks agree."

    def _disk(self) -> str:
        if problems := self._found["problems"]:
            raise SiteRefused(str(problems[0]), remedy="Correct the folder or its rights at the site.")
        free = int(self._found["free_bytes"])
        if free < LEAST_FREE:
            raise SiteRefused(f"Only {free / 1e9:.1f} GB are free.", remedy="Make room on the site's disk.")
        return f"{free / 1e9:.0f} GB are free."

    def _store(self) -> str:
        store = self._found.get("store")
        if store is None:
            return "Not tried."
        if not store["ok"]:
            raise SiteRefused(
                f"The site does not reach the object store ({store['error']}).",
                remedy="Allow https from the site's machine to the portal's object store; check proxy and certificate.",
            )
        size = int(store["bytes"]) / 1e6
        down, up = (8 * size / max(1e-6, float(store[key])) for key in ("down_s", "up_s"))
        return f"{size:.1f} MB fetched with {down:.3g} Mbit/s and put back with {up:.3g} Mbit/s."

    def _portal(self) -> str:
        portal = self._found.get("portal")
        if portal is None:
            return "Not tried."
        if portal["ok"]:
            return "The site reaches the portal."
        # Not a failure: the records come with the manifest, too.
        return f"The site does not reach the portal ({portal['error']}): its curves appear at the end of each round."

    def _find_datasets(self) -> str:
        self.datasets = [dataset_report(report) for report in self._found["datasets"]]
        series = {report.name: report.train_cases + report.validation_cases for report in self.datasets}
        return dataset_step(self.datasets, remedy=self.offer, series=series if self.names_series else None)
