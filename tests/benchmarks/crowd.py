"""Many hospitals in one light process: each answers as an Airflow 2 on a port of its own, with the delays of a long line.

``python -m tests.benchmarks.crowd CONFIG``: a JSON file ``{"hospitals": [{slug, key, port, kind, work}], "out", "seed"}``.
``kind``: *prompt* (50 to 300 ms for each answer), *slow* (2 to 4 s), *mute* (after a while it accepts connections and
answers nothing) or *dead* (after a while it takes no connection at all, as a machine that is gone). A run fetches its
job, ends after ``work`` seconds, and delivers the model as its update; with ``tells`` it says so to the portal. What
happens is written to ``out``, a JSON line for each event.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from trainer.contract import (
    CONTRACT_VERSION,
    Manifest,
    Stored,
    attempt_key,
    metrics_token,
    signed,
    spec_from_json,
    verified,
)

FORSAKEN_AFTER = 5.0
"""Seconds after all have begun at which the mute and the dead fall silent."""
DELAYS = {"slow": (2.0, 4.0)}
PROMPT = (0.05, 0.3)
TAGS = [{"name": f"contract-{CONTRACT_VERSION}"}, {"name": "code-crowd"}]


@dataclass
class Hospital:
    slug: str
    key: str
    port: int
    kind: str
    work: float
    tells: bool
    draw: random.Random
    out: Any
    runs: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    blocked: list[socket.socket] = field(default_factory=list)

    def say(self, what: str, **facts: Any) -> None:
        self.out.write(json.dumps({"what": what, "slug": self.slug, "at": time.time(), **facts}) + "\n")
        self.out.flush()

    # --- its Airflow ---------------------------------------------------------------------------------

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=64)

    async def fall_silent(self) -> None:
        """Stop answering; a dead one takes no connections either: its queue is full and nobody empties it."""
        self.silent = True
        self.say("silent")
        if self.kind != "dead":
            return
        self._server.close()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(0)
        self.blocked = [listener]
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self.blocked.append(filler)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                length = 0
                while (header := (await reader.readline()).strip()) != b"":
                    name, _, value = header.decode().partition(":")
                    length = int(value) if name.lower() == "content-length" else length
                body = await reader.readexactly(length) if length else b""
                self.say("asked", path=path.split("?")[0])
                if self.silent:
                    await asyncio.sleep(3600)
                await asyncio.sleep(self.draw.uniform(*DELAYS.get(self.kind, PROMPT)))
                status, document = self._answer(method, path.split("?")[0], body)
                text = document if isinstance(document, bytes) else json.dumps(document).encode()
                kind = "text/plain" if isinstance(document, bytes) else "application/json"
                head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n"
                writer.write(head.encode() + text)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = path.strip("/").split("/")[2:]
        if not path.startswith("/api/v1/"):
            return 404, {"detail": "not found"}
        match parts:
            case ["version"]:
                return 200, {"version": "2.11.2"}
            case ["dags", "~", "dagRuns", "list"]:
                return 200, {"dag_runs": [self._run(run) for run, state in self.runs.items() if state == "running"]}
            case ["dags", dag_id]:
                return 200, {"dag_id": dag_id, "is_paused": False, "is_active": True, "tags": TAGS}
            case ["dags", _, "dagRuns"] if method == "POST":
                document = json.loads(body)
                run = document["dag_run_id"]
                if run in self.runs:
                    return 409, {"detail": "exists"}
                self.runs[run] = "running"
                self._task = asyncio.create_task(self._work(run, document["conf"]["spec_url"]))
                return 200, self._run(run)
            case ["dags", _, "dagRuns", run] if run in self.runs:
                return 200, self._run(run)
            case ["dags", _, "dagRuns", run, "taskInstances"]:
                return 200, {"task_instances": [{"task_id": "train", "state": self.runs[run], "try_number": 1}]}
            case ["dags", _, "dagRuns", run, "taskInstances", "train", "logs", "1"]:
                return 200, b""
        return 404, {"detail": "not found"}

    def _run(self, run: str) -> dict[str, Any]:
        return {"dag_run_id": run, "state": self.runs[run], "note": None}

    # --- its trainer ---------------------------------------------------------------------------------

    async def _work(self, run: str, spec_url: str) -> None:
        spec, model = await asyncio.to_thread(self._fetch, run, spec_url)
        await asyncio.sleep(self.work)
        if self.silent:
            return
        await asyncio.to_thread(self._deliver, spec, model)
        self.runs[run] = "success"
        self.say("ended", run=run)
        if self.tells:
            await asyncio.to_thread(self._tell, spec)

    def _fetch(self, run: str, spec_url: str) -> tuple[Any, bytes]:
        key = attempt_key(bytes.fromhex(self.key), run)
        spec = spec_from_json(verified(requests.get(spec_url, timeout=60).content, key))
        return spec, requests.get(spec.model.url, timeout=60).content

    def _deliver(self, spec: Any, model: bytes) -> None:
        manifest = Manifest(
            run=spec.run, experiment=spec.experiment, round=spec.round, site=spec.site, attempt=spec.attempt, kind=spec.kind,
            exit_code=0, message="Finished.", train_cases=8, validation_cases=2, steps=1,
            update=Stored(spec.model.sha256, len(model)),
        )  # fmt: skip
        key = attempt_key(bytes.fromhex(self.key), spec.run)
        for url, data in (
            (spec.update.url, model),
            (spec.log.url, b""),
            (spec.manifest.url, signed(manifest.to_json(), key)),
        ):
            requests.put(url, data=data, timeout=60).raise_for_status()

    def _tell(self, spec: Any) -> None:
        token = metrics_token(attempt_key(bytes.fromhex(self.key), spec.run))
        body = {"run": spec.run, "records": [], "finished": True}
        requests.post(spec.metrics_url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=60)


async def main(path: Path) -> None:
    config = json.loads(path.read_text())
    draw = random.Random(config["seed"])
    with Path(config["out"]).open("a") as out:
        hospitals = [Hospital(**row, draw=draw, out=out) for row in config["hospitals"]]
        for hospital in hospitals:
            await hospital.open()
        while not all(hospital.runs for hospital in hospitals):
            await asyncio.sleep(0.2)
        await asyncio.sleep(FORSAKEN_AFTER)
        for hospital in hospitals:
            if hospital.kind in ("mute", "dead"):
                await hospital.fall_silent()
        await asyncio.Event().wait()  # until it is killed


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
