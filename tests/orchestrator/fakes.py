"""A federation in memory: object store, sites, aggregation, clock, under the same signatures as the real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from fedportal.aggregation.admission import Admission, admit, admit_state
from fedportal.aggregation.merge import Aggregate, aggregate
from fedportal.connectors.base import CheckReport, CheckStep, DatasetReport, LogChunk, RunState, RunStatus
from fedportal.connectors.errors import ObjectDamaged, ObjectMissing, StoreUnreachable
from fedportal.orchestrator.errands import Errand, Pace
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import SiteView
from tests.factories import BRAIN_CHANNELS, BRAIN_LABELS
from trainer.contract import (
    INCOMING_SUBJECT,
    CaseScore,
    Exit,
    JobSpec,
    Kind,
    LaunchTicket,
    Manifest,
    MetricRecord,
    Phase,
    Put,
    Stored,
    attempt_key,
    case_pseudonym,
    manifest_from_json,
    signed,
    site_key,
    site_of,
    spec_from_json,
    verified,
)

SECRET = b"a secret of the tests"
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NOTE = {"fedportal": '{"buffers":[],"round":0}'}


def key_of(run: str) -> str:
    return attempt_key(site_key(SECRET, site_of(run)), run)


class Clock:
    """The time of the tests. Engine, steps and pace read it; only :meth:`tick` moves it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def monotonic(self) -> float:
        return (self.now - START).total_seconds()


@dataclass
class MemoryStore:
    """An object store in a dictionary. A presigned URL is ``memory:KEY``."""

    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)
    is_down: bool = False
    large: int = 10**9
    """From this size on an upload is one of parts."""
    writes: list[str] = field(default_factory=list)

    def _reach(self) -> None:
        if self.is_down:
            raise StoreUnreachable("the object store does not answer")

    def put_bytes(self, key: str, data: bytes, *, content_type: str = "") -> str:
        self._reach()
        self.objects[key] = data
        self.writes.append(key)
        return hashlib.sha256(data).hexdigest()

    def put_file(self, key: str, path: Path, *, sha256: str = "", content_type: str = "") -> str:
        return self.put_bytes(key, path.read_bytes())

    def get_bytes(self, key: str, *, max_bytes: int = 32 * 1024 * 1024) -> bytes:
        self._reach()
        if key not in self.objects:
            raise ObjectMissing(f"there is no object {key}")
        return self.objects[key]

    def get_file(self, key: str, path: Path, *, sha256: str | None = None, size: int | None = None, **_: Any) -> str:
        data = self.get_bytes(key)
        found = hashlib.sha256(data).hexdigest()
        if (size is not None and size != len(data)) or (sha256 is not None and sha256 != found):
            raise ObjectDamaged(f"{key} is not what was announced")
        path.write_bytes(data)
        return found

    def exists(self, key: str) -> bool:
        self._reach()
        return key in self.objects

    def list(self, prefix: str) -> Iterator[str]:
        self._reach()
        return iter(sorted(key for key in self.objects if key.startswith(prefix)))

    def delete_prefix(self, prefix: str, *, within: Collection[str] | None = None) -> int:
        folders = tuple(f"{prefix}/{name}/" for name in within) if within is not None else (f"{prefix}/",)
        found = [key for key in self.list(prefix + "/") if key.startswith(folders)]
        for key in found:
            del self.objects[key]
        self.uploads = {id: key for id, key in self.uploads.items() if not key.startswith(folders)}
        return len(found)

    def presign_get(self, key: str, expires: timedelta, *, filename: str | None = None) -> str:
        return f"memory:{key}"

    presign_put = presign_get

    def open_upload(self, key: str, size_hint: int, expires: timedelta) -> Put:
        if size_hint < self.large:
            return Put(url=f"memory:{key}")
        self._reach()
        upload_id = f"upload-{len(self.uploads) + 1}"
        self.uploads[upload_id] = key
        return Put(part_urls=(f"memory:{key}",) * 2, part_size=size_hint, upload_id=upload_id)

    def close_upload(self, key: str, put: Put, etags: Sequence[str]) -> None:
        self._reach()
        if put.upload_id and self.uploads.pop(put.upload_id, None) != key:
            raise ObjectMissing(f"there is no upload {put.upload_id}")


@dataclass
class FakeSite:
    """A site in memory. A launched run works until :meth:`deliver` or :meth:`die`; ``auto`` delivers at once."""

    slug: str
    store: MemoryStore
    auto: bool = False
    trouble: Exception | None = None
    """Raised by every call while it is set."""
    cases: int = 8
    dice: float = 0.5
    moved: int = 0
    """So many of its training cases are held out now, beside the two that always are."""
    copied: tuple[tuple[str, int], ...] = ()
    """Validation cases (of which site, which number) that lie among its training cases, too."""
    launched: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    specs: dict[str, JobSpec] = field(default_factory=dict)
    states: dict[str, RunStatus] = field(default_factory=dict)
    log: str = ""
    checks: int = 0
    problem: str = ""

    def _reach(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def check(self) -> CheckReport:
        self._reach()
        self.checks += 1
        if self.problem:
            return CheckReport((CheckStep("data", False, self.problem),))
        found = DatasetReport("Task01_BrainTumour", "BRATS", self.cases, 4, BRAIN_CHANNELS, BRAIN_LABELS)
        return CheckReport((CheckStep("data", True, "1 found"),), version="1", datasets=(found,))

    def launch(self, ticket: LaunchTicket) -> bool:
        self._reach()
        if ticket.run in self.states:
            return False
        assert ticket.key == key_of(ticket.run)
        data = self.store.get_bytes(ticket.spec_url.removeprefix("memory:"))
        self.specs[ticket.run] = spec_from_json(verified(data, ticket.key))
        self.launched.append(ticket.run)
        self.states[ticket.run] = RunStatus(RunState.RUNNING)
        if self.auto:
            self.deliver(ticket.run)
        return True

    def poll(self, run: str) -> RunStatus:
        self._reach()
        return self.states.get(run, RunStatus(RunState.LOST, message="The site does not know this run."))

    def cancel(self, run: str) -> None:
        self._reach()
        self.cancelled.append(run)
        if run in self.states and not self.states[run].state.is_over:
            self.states[run] = RunStatus(RunState.CANCELLED, int(Exit.CANCELLED))

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        self._reach()
        data = self.log.encode()
        return LogChunk(data[offset:].decode(), len(data))

    # --- what it does ---------------------------------------------------------------------------

    @property
    def run(self) -> str:
        """The newest run."""
        return self.launched[-1]

    def deliver(self, run: str = "", /, *, update: bytes | None = None, key: str = "", **changes: Any) -> Manifest:
        """Write update (empty: none) and manifest as the trainer does. ``changes`` replace fields of the manifest."""
        run = run or self.run
        spec = self.specs[run]
        stored = None
        if spec.update is not None and update != b"":
            data = self.trained(spec) if update is None else update
            address = spec.update.url or spec.update.part_urls[0]
            self.store.objects[address.removeprefix("memory:")] = data
            etags = ("etag",) if spec.update.upload_id else ()
            stored = Stored(hashlib.sha256(data).hexdigest(), len(data), etags)
        manifest = Manifest(
            run=spec.run,
            experiment=spec.experiment,
            round=spec.round,
            site=spec.site,
            attempt=spec.attempt,
            kind=spec.kind,
            exit_code=0,
            message="Finished.",
            train_cases=self.cases,
            validation_cases=4,
            steps=6,
            update=stored,
            metrics=(
                MetricRecord(Phase.INCOMING, "dice", self.dice, "WT", cases=4),
                MetricRecord(Phase.INCOMING, "dice", self.dice, "mean", cases=4),
                MetricRecord(Phase.TRAIN, "loss", 0.7, step=6, progress=1.0),
            ),
            seconds={"load": 0.25, "train": 1.0, "pull": 0.1, "push": 0.1},
            held_out=(cases := self.held_out(spec)),
            cases=self.scores(spec, cases) if spec.kind is Kind.EVALUATE else (),
            copies=self.copies(spec) if spec.kind is Kind.EVALUATE else 0,
        )
        document = replace(manifest, **changes).to_json()
        address = spec.manifest.url.removeprefix("memory:")
        self.store.objects[address] = signed(document, key or key_of(run))
        self.states[run] = RunStatus(RunState.SUCCEEDED, 0)
        return manifest_from_json(document)

    def held_out(self, spec: JobSpec) -> tuple[str, ...]:
        """Return the pseudonyms of its two validation cases, as the trainer computes them."""
        return tuple(self.case(spec, self.slug, n) for n in range(2 + self.moved) if spec.case_key)

    def copies(self, spec: JobSpec) -> int:
        return sum(self.case(spec, slug, n) in spec.held_out for slug, n in self.copied)

    @staticmethod
    def case(spec: JobSpec, slug: str, n: int) -> str:
        return case_pseudonym(spec.case_key, f"{slug} {n}".encode())

    def scores(self, spec: JobSpec, cases: Sequence[str]) -> tuple[CaseScore, ...]:
        """Return a Dice and an HD95 of every subject and case, the Dice depending on the subject's weights alone."""
        found = []
        for name, models in {INCOMING_SUBJECT: (spec.model,), **{s.name: s.models for s in spec.subjects}}.items():
            data = [self.store.objects[model.url.removeprefix("memory:")] for model in models]
            assert [hashlib.sha256(one).hexdigest() for one in data] == [model.sha256 for model in models]
            dice = float(int.from_bytes(hashlib.sha256(b"".join(data)).digest()[:2])) / 2**16
            for case in cases:
                found.append(CaseScore(name, case, "dice", {"WT": dice, "TC": dice / 2, "ET": None}))
                found.append(CaseScore(name, case, "hd95", {"WT": 3.5, "TC": None, "ET": None}))
        return tuple(found)

    def trained(self, spec: JobSpec) -> bytes:
        """Return the incoming model moved by a step that depends on site and round alone, as training does."""
        incoming = self.store.objects[spec.model.url.removeprefix("memory:")]
        assert hashlib.sha256(incoming).hexdigest() == spec.model.sha256
        step = float(int.from_bytes(hashlib.sha256(f"{spec.site} {spec.round}".encode()).digest()[:2])) / 2**20
        return model_bytes(np.frombuffer(incoming[-64:], np.float32) + np.float32(step))

    def die(self, run: str = "", *, exit_code: int | None = None, message: str = "It died.") -> None:
        self.states[run or self.run] = RunStatus(RunState.FAILED, exit_code, message)


def model_bytes(values: Any = 0.0) -> bytes:
    """A model of one tensor with sixteen weights."""
    return save({"w": np.broadcast_to(np.asarray(values, np.float32), (16,)).copy()}, NOTE)


def weights_of(data: bytes, folder: Path) -> np.ndarray:
    path = folder / "look.safetensors"
    path.write_bytes(data)
    return load_file(path)["w"]


class DirectAggregation:
    """The real admission and aggregation, without a process of their own."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None

    def admit(self, update: Path, reference: Path, *, max_relative_norm: float | None = None) -> Admission:
        if self.trouble:
            raise self.trouble
        return admit(update, reference, max_relative_norm=max_relative_norm)

    def admit_state(self, state: Path, model: Path, entries: Sequence[str]) -> Admission:
        return admit_state(state, model, entries)

    def aggregate(self, **arguments: Any) -> Aggregate:
        if self.trouble:
            raise self.trouble
        return aggregate(**arguments)


class DirectErrands:
    """Errands done on the spot, except those whose key begins like one of ``hanging``: they never return."""

    def __init__(self) -> None:
        self.hanging: set[tuple[Any, ...]] = set()
        self._done: dict[Any, Errand] = {}
        self._away: set[Any] = set()

    def of(self, owner: Any) -> DirectErrands:
        return self

    def drop(self, owner: Any) -> None:
        pass

    def start(self, key: Any, call: Callable[[], Any], *, is_large: bool = False, is_news: Any = True) -> bool:
        if key in self._done or key in self._away:
            return False
        if any(key[: len(prefix)] == prefix for prefix in self.hanging):
            self._away.add(key)
            return True
        errand = self._done[key] = Errand()
        try:
            errand.value = call()
        except Exception as error:
            errand.error = error
        errand.done.set()
        return True

    def is_under_way(self, key: Any) -> bool:
        return key in self._away

    def keys(self, *prefix: Any) -> list[Any]:
        return [key for key in (*self._done, *self._away) if key[: len(prefix)] == prefix]

    def wait(self, keys: Any, patience: float) -> None:
        pass

    def wait_for_news(self, patience: float) -> bool:
        return False

    def take(self, key: Any) -> Errand | None:
        return self._done.pop(key, None)


class Federation:
    """Tools over fakes, with the sites ``a``, ``b``, ``c``, … by slug."""

    def __init__(self, folder: Path, slugs: Sequence[str] = ("a", "b", "c"), *, auto: bool = False) -> None:
        self.clock = Clock()
        self.store = MemoryStore()
        self.sites: Mapping[str, FakeSite] = {slug: FakeSite(slug, self.store, auto=auto) for slug in slugs}
        self.aggregation = DirectAggregation()
        self.errands = DirectErrands()
        self.commands: list[list[str]] = []
        self.command_fails: dict[str, str] = {}
        self.tools = Tools(
            store=self.store,
            aggregation=self.aggregation,
            connector=self.connector,
            trainer=self.trainer,
            spool=folder / "spool",
            secret=SECRET,
            public_url="http://portal.test",
            url_lifetime=timedelta(hours=24),
            errands=self.errands,
            pace=Pace(self.clock.monotonic),
        )

    def __getitem__(self, slug: str) -> FakeSite:
        return self.sites[slug]

    def connector(self, site: SiteView) -> FakeSite:
        return self.sites[site.slug]

    def trainer(self, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        self.commands.append(list(argv))
        if argv[0] in self.command_fails:
            return int(Exit.BAD_JOB), self.command_fails[argv[0]]
        out = Path(argv[argv.index("--out") + 1])
        out.write_bytes(model_bytes(1.0) if argv[0] == "init" else b"a bundle")
        return 0, ""
