"""How the API cuts long lists into pages."""

from rest_framework.pagination import LimitOffsetPagination


class PortalPagination(LimitOffsetPagination):
    """``?limit=`` and ``?offset=``; whoever asks for more than the most gets the most, and ``next`` leads on."""

    max_limit = 500
