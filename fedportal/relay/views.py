"""The portal's side of Kaapana's remote protocol. Sites authenticate with their tokens; nobody signs in here.

Answers look like kaapana-backend's: JSON, and ``{"detail": …}`` for errors.
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from fedportal.connectors.errors import StoreError, StoreUnreachable
from fedportal.connectors.job_queue import JobState
from fedportal.relay import files, services
from fedportal.relay.models import RemoteInstance, RemoteJob
from fedportal.relay.protocol import Malformed, job_to_json, read_poll, read_report, workflow_to_json
from fedportal.sites.models import Site
from fedportal.ui.errors import DomainError
from trainer.contract import ContractError
from trainer.contract.checks import read_json

MAX_POLL = 16 * 1024 * 1024
"""Most bytes of a poll: 80,000 encrypted identifiers, several times what fits into a run's conf."""
MAX_REPORT = 64 * 1024


class NoFilesHere(DomainError):
    """This process of the portal does not relay files: see docs/kaapana-pull.md."""

    status = HTTPStatus.NOT_FOUND


Remote = Callable[[HttpRequest, Any], HttpResponse]


class TooLarge(DomainError):
    """The body is larger than this call accepts."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def remote(who: Callable[[str], Any] = services.authenticate, **verbs: Remote) -> Callable[[HttpRequest], HttpResponse]:
    """Make the view of one address from a function for each verb. ``who`` returns whom a token belongs to."""

    @csrf_exempt
    @login_not_required
    def view(request: HttpRequest) -> HttpResponse:
        act = verbs.get(str(request.method).lower())
        if act is None:
            return HttpResponseNotAllowed([verb.upper() for verb in verbs])
        try:
            # check the token first: a stranger's body is not even read
            return act(request, who(request.headers.get("FederatedAuthorization", "")))
        except DomainError as error:
            return JsonResponse({"detail": error.message}, status=error.status)
        except Malformed as error:
            return JsonResponse({"detail": str(error)}, status=HTTPStatus.UNPROCESSABLE_ENTITY)
        except StoreUnreachable:
            return JsonResponse(
                {"detail": "The object store is not answering. Try again in a minute."},
                status=HTTPStatus.SERVICE_UNAVAILABLE,
            )
        except StoreError as error:
            return JsonResponse({"detail": str(error)}, status=HTTPStatus.BAD_GATEWAY)

    return view


def _sync(request: HttpRequest, instance: RemoteInstance) -> HttpResponse:
    message = read_poll(_body(request, MAX_POLL), request.GET.dict())
    agent = request.headers.get("User-Agent", "")
    return JsonResponse(services.poll(instance, message, agent=agent, skew=_skew(request)))


def _put_job(request: HttpRequest, instance: RemoteInstance) -> HttpResponse:
    job = services.report(instance, read_report(_body(request, MAX_REPORT)))
    return JsonResponse(_without_conf(job))


def _get_job(request: HttpRequest, instance: RemoteInstance) -> HttpResponse:
    return JsonResponse(_without_conf(services.find_job(instance, _number(request))))


def _delete_job(request: HttpRequest, instance: RemoteInstance) -> HttpResponse:
    services.report(instance, read_report({"job_id": _number(request), "status": JobState.DELETED.value}))
    return JsonResponse({"ok": True})


def _get_jobs(request: HttpRequest, instance: RemoteInstance) -> HttpResponse:
    if name := request.GET.get("instance_name"):
        services.require_name(instance, name)
    jobs = services.find_jobs(instance, request.GET.get("status", ""))
    return JsonResponse([_without_conf(job) for job in jobs], safe=False)


def _put_workflow(request: HttpRequest, instance: RemoteInstance) -> HttpResponse:
    body = _body(request, MAX_REPORT)
    if not isinstance(body, dict) or not isinstance(body.get("workflow_id"), str):
        raise Malformed("workflow_id: expected a text")
    job = services.signal(instance, body["workflow_id"], str(body.get("workflow_status") or ""))
    return JsonResponse(workflow_to_json(job, str(instance.site.config["instance_name"])))


def _get_file(request: HttpRequest, site: Site) -> HttpResponse:
    _require_relay()
    return files.download(site, request.headers.get("presigned-url", ""), request.headers.get("Range", ""))


def _post_file(request: HttpRequest, site: Site) -> HttpResponse:
    _require_relay()
    etag = files.upload(
        site,
        request.headers.get("presigned-url", ""),
        request,
        content_type=request.headers.get("Content-Type", ""),
        length=int(request.META.get("CONTENT_LENGTH") or 0),
    )
    response = JsonResponse({"ok": True, "etag": etag})
    response.headers["ETag"] = f'"{etag}"'
    return response


def site_of_token(token: str) -> Site:
    """Return the site that a token belongs to: the token of its Kaapana or of one of its runs."""
    return services.authenticate_run(token) if "." in token else services.authenticate(token).site


def _require_relay() -> None:
    if not settings.FEDPORTAL_FILE_RELAY:
        raise NoFilesHere


sync = remote(put=_sync)
job = remote(put=_put_job, get=_get_job, delete=_delete_job)
jobs = remote(get=_get_jobs)
workflow = remote(put=_put_workflow)
presigned_url = remote(site_of_token, get=_get_file, post=_post_file)


def _body(request: HttpRequest, most: int) -> Any:
    if int(request.META.get("CONTENT_LENGTH") or 0) > most:
        raise TooLarge
    data = request.read(most + 1)
    if len(data) > most:
        raise TooLarge
    try:
        return read_json(data)
    except ContractError as error:
        raise Malformed(f"body: expected JSON, but {error}") from error


def _number(request: HttpRequest) -> int:
    text = request.GET.get("job_id", "")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Malformed("job_id: expected a positive whole number")
    return int(text)


def _skew(request: HttpRequest) -> float | None:
    """Return by how many seconds the site's clock is ahead, if the site sends its time."""
    try:
        theirs = parsedate_to_datetime(request.headers.get("Date", ""))
    except ValueError:
        return None
    if theirs.tzinfo is None:
        return None
    return round((theirs - timezone.now()).total_seconds(), 1)


def _without_conf(job: RemoteJob) -> dict[str, Any]:
    """Describe a job without its conf: only a poll hands out the presigned addresses in it."""
    return {**job_to_json(job, "poll"), "run_id": job.remote_run_id or None, "conf_data": {}}
