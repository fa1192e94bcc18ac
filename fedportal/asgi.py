"""The portal as an ASGI application: pages and API over HTTP, live curves over websockets."""

import os

from django.core.asgi import get_asgi_application
from django.core.signals import request_finished
from django.db import connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fedportal.settings")
http = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402  (apps must be loaded first)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402

from fedportal.relay.bodies import BodyLimit  # noqa: E402
from fedportal.routing import websocket_urlpatterns  # noqa: E402


def close_connections(**_: object) -> None:
    """Close a request's connections to the database: here each request has a thread of its own, so nobody else uses them
    again, and PostgreSQL would hold them until the garbage collector comes by."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:  # that of a test around it
            connection.close()


request_finished.connect(close_connections)

application = ProtocolTypeRouter(
    {
        "http": BodyLimit(http),
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
    }
)
