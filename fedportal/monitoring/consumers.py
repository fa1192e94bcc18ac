"""The websocket of an experiment page: ``/ws/experiments/<key>/?after=<cursor>&round=<newest round shown>``.

It only sends. Who may not see the experiment is told so with a close code: 4401 sign in, 4404 no such experiment.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import DatabaseError

from fedportal.accounts.models import User
from fedportal.experiments.models import Experiment
from fedportal.monitoring.rows import Cursor
from fedportal.monitoring.tail import catch_up, listen
from fedportal.monitoring.watchers import GONE, SIGN_IN, TRY_AGAIN, Watcher, watcher_of

logger = logging.getLogger(__name__)


class LiveConsumer(AsyncWebsocketConsumer):
    """One viewer. First what came after its cursor, then what the experiment's reader finds."""

    _pump: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        await self.accept()  # a refusal before accepting would reach the browser without its code
        user = self.scope["user"]
        if not user.is_authenticated:
            return await self.close(SIGN_IN)
        experiment_id = await database_sync_to_async(_find)(user, self.scope["url_route"]["kwargs"]["key"])
        if experiment_id is None:
            return await self.close(GONE)
        watcher = await database_sync_to_async(watcher_of)(self.scope)
        self._pump = asyncio.create_task(self._send_all(experiment_id, watcher))
        return None

    async def disconnect(self, code: int) -> None:
        if self._pump is not None:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Ignore what a page says: there is nothing to ask for."""

    async def _send_all(self, experiment_id: int, watcher: Watcher) -> None:
        query = parse_qs(self.scope["query_string"].decode("ascii", "replace"))
        cursor = Cursor.parse(query.get("after", [""])[0])
        shown = re.fullmatch("[0-9]{1,6}", query.get("round", [""])[0])
        try:
            async with listen(experiment_id, watcher) as listener:
                missed = catch_up(experiment_id, cursor, shown_round=int(shown[0]) if shown else 0)
                while (text := await database_sync_to_async(next)(missed, None)) is not None:
                    await self.send(text_data=text)
                while isinstance(message := await listener.get(), str):
                    await self.send(text_data=message)
        except (DatabaseError, Experiment.DoesNotExist):
            logger.exception("Cannot serve the journal of experiment %s at the moment", experiment_id)
            message = TRY_AGAIN
        await self.close(message)


def _find(user: User, key: str) -> int | None:
    return Experiment.objects.visible_to(user).filter(key=key).values_list("pk", flat=True).first()
