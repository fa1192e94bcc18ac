"""What a test of the trainer's processes needs of a portal: jobs in a real store, and an ear for metrics."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fedportal.connectors.objectstore import ObjectStore
from trainer.contract import (
    Fetch,
    JobSpec,
    Kind,
    LaunchTicket,
    Manifest,
    Region,
    Task,
    TrainingPlan,
    attempt_key,
    attempt_prefix,
    global_model_key,
    manifest_from_json,
    metrics_token,
    run_name,
    signed,
    verified,
)

SCRIPTED = (sys.executable, str(Path(__file__).with_name("scripted.py")))
"""The trainer with the work of ``scripted.py`` in place of torch's."""
HOUR = timedelta(hours=1)
PLAN = TrainingPlan(
    task=Task("brats", ("FLAIR",), {0: "background", 1: "edema"}, (Region("WT", (1,)),)), rounds=2, local_epochs=1
)


class Bench:
    """The portal's part of some attempts. The dataset's name tells the scripted work what to do.

    ``experiment``: its key, in the names of runs; a site that outlives a test needs another one for each.
    """

    def __init__(
        self, store: ObjectStore, *, metrics_url: str = "", model: bytes = b"", experiment: str = "abcd"
    ) -> None:
        self.store, self.metrics_url, self.experiment = store, metrics_url, experiment
        self.model = model or os.urandom(200_000)
        self.model_sha256 = store.put_bytes(global_model_key(experiment, 0), self.model)

    def spec(self, dataset: str = "quick", *, attempt: int = 1, **changes: Any) -> JobSpec:
        run = run_name(experiment=self.experiment, round=1, site="mainz", attempt=attempt)
        prefix = attempt_prefix(experiment=self.experiment, round=1, site="mainz", attempt=attempt)
        spec = JobSpec(
            kind=Kind.TRAIN,
            run=run,
            experiment=self.experiment,
            round=1,
            site="mainz",
            attempt=attempt,
            dataset=dataset,
            plan=PLAN,
            model=Fetch(
                self.store.presign_get(global_model_key(self.experiment, 0), HOUR), self.model_sha256, len(self.model)
            ),
            manifest=self.store.open_upload(f"{prefix}/manifest.json", 1000, HOUR),
            log=self.store.open_upload(f"{prefix}/log.txt", 1000, HOUR),
            update=self.store.open_upload(f"{prefix}/update.safetensors", len(self.model), HOUR),
            metrics_url=self.metrics_url,
        )
        return replace(spec, **changes)

    def ticket(self, dataset: str = "quick", *, attempt: int = 1, **changes: Any) -> LaunchTicket:
        spec = self.spec(dataset, attempt=attempt, **changes)
        return self.publish(spec)

    def publish(self, spec: JobSpec, *, data: bytes | None = None) -> LaunchTicket:
        key = attempt_key(b"s" * 32, spec.run)
        where = f"fedportal/{self.experiment}/r00001/mainz/a{spec.attempt}/spec.json"
        self.store.put_bytes(where, signed(spec.to_json(), key) if data is None else data)
        return LaunchTicket(spec.run, self.store.presign_get(where, HOUR), key, spec.dataset)

    def read(self, ticket: LaunchTicket, name: str) -> bytes:
        return self.store.get_bytes(f"fedportal/{self.experiment}/r00001/mainz/a{ticket.run[-1]}/{name}")

    def has(self, ticket: LaunchTicket, name: str) -> bool:
        return self.store.exists(f"fedportal/{self.experiment}/r00001/mainz/a{ticket.run[-1]}/{name}")

    def manifest(self, ticket: LaunchTicket) -> Manifest:
        return manifest_from_json(verified(self.read(ticket, "manifest.json"), ticket.key))


class Ear:
    """A portal's metrics endpoint on loopback. ``answers``: status codes to give first, then 204."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.answers: list[int] = []
        ear = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code = ear.answers.pop(0) if ear.answers else 204
                if code == 204:
                    ear.tokens.append(self.headers["Authorization"])
                    ear.posts.append(body)
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/api/metrics"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for post in self.posts for record in post["records"]]

    @property
    def finished(self) -> bool:
        return any(post["finished"] for post in self.posts)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def token_of(ticket: LaunchTicket) -> str:
    return f"Bearer {metrics_token(ticket.key)}"


def wait_for(what: Callable[[], Any], *, seconds: float = 20) -> Any:
    """Return the first true answer of ``what``; fails when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"did not come about within {seconds} s")
        time.sleep(0.02)
