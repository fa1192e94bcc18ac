"""A polling site in rows, and what its Kaapana would send."""

from __future__ import annotations

import json
from typing import Any

from django.test import Client

from fedportal.connectors.kaapana_pull import KaapanaPullConnector
from fedportal.relay.queue import SiteQueue
from fedportal.sites.models import Site
from tests.factories import make_site

ROOT = "/kaapana-backend/remote"
PROJECT = {
    "id": "6a1d6a6e-0000-4000-8000-000000000001",
    "name": "admin",
    "s3_bucket": "project-admin",
    "kubernetes_namespace": "project-admin",
    "opensearch_index": "project_admin",
}


def polling_site(slug: str = "mainz", **config: Any) -> Site:
    values = {
        "instance_name": f"{slug}.example",
        "host": f"{slug}.example",
        "port": 443,
        "project": json.dumps(PROJECT),
    }
    return make_site(
        slug,
        connector="kaapana-pull",
        config={**values, **config},
        secrets={"portal_token": token_of(slug)},
    )


def token_of(slug: str) -> str:
    return f"token-of-{slug}-" + "x" * 32


def advert(slug: str = "mainz", **changes: Any) -> dict[str, Any]:
    """What a Kaapana tells of itself with every poll."""
    return {
        "instance_name": f"{slug}.example",
        "allowed_dags": {"fp-train": {"ui_forms": {}}, "fp-check": {}},
        "allowed_datasets": [
            {"name": "brats", "username": "kaapana", "identifiers": ["gAAAAABsealed1", "gAAAAABsealed2"]}
        ],
        "automatic_update": True,
        "automatic_workflow_execution": True,
        **changes,
    }


class Kaapana:
    """The HTTP client of a site, on Django's test client: the calls that ``workflows/crud.py`` of a Kaapana makes."""

    def __init__(self, slug: str = "mainz", *, token: str | None = None) -> None:
        self.slug = slug
        self.headers = {"FederatedAuthorization": token_of(slug) if token is None else token, "User-Agent": "kaapana"}
        self.client = Client()

    def call(self, verb: str, path: str, body: Any = None, **headers: str) -> Any:
        return self.client.generic(
            verb,
            f"{ROOT}/{path}",
            data=b"" if body is None else json.dumps(body),
            content_type="application/json",
            headers={**self.headers, **headers},
        )

    def poll(self, *, name: str | None = None, status: str = "queued", **changes: Any) -> Any:
        name = name or f"{self.slug}.example"
        body = advert(self.slug, instance_name=name, **changes)
        return self.call("PUT", f"sync-client-remote?instance_name={name}&status={status}", body)

    def sync(self, *reports: dict[str, Any], **changes: Any) -> Any:
        """A poll in the dialect of later versions."""
        body = {"client_to_remote_instance": advert(self.slug, **changes), "client_to_remote_jobs": list(reports)}
        return self.call("PUT", "sync-client-remote", body)

    def jobs(self, **changes: Any) -> list[dict[str, Any]]:
        response = self.poll(**changes)
        assert response.status_code == 200, response.content
        return response.json()["incoming_jobs"]

    def report(self, job_id: int, status: str, **fields: Any) -> Any:
        body = {"job_id": job_id, "run_id": f"fp-train-2611230000{job_id:08d}", "status": status, "description": None}
        return self.call("PUT", "job", {**body, **fields})


def put(slug: str = "mainz", run: str = "fp-abcd-r1-mainz-a1", **conf: Any) -> SiteQueue:
    """Put a job for a site; return the site's queue."""
    queue = SiteQueue(slug)
    values = {"fedportal": {"run": run, "spec_url": "https://store.example/b/spec.json?X-Amz-Signature=a&b=c"}, **conf}
    queue.put(run, dag_id="fp-train", conf=values, dataset="brats")
    return queue


def connector(queue: SiteQueue | None = None, **options) -> KaapanaPullConnector:
    return KaapanaPullConnector(
        queue or SiteQueue("mainz"), portal_url="https://portal.example", patience=0.0, **options
    )
