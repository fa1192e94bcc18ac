"""Addresses of the websockets."""

from django.urls import path

from fedportal.monitoring.consumers import LiveConsumer

websocket_urlpatterns = [path("ws/experiments/<str:key>/", LiveConsumer.as_asgi())]
