"""How the API splits long lists into pages."""

from rest_framework.pagination import LimitOffsetPagination


class PortalPagination(LimitOffsetPagination):
    """``?limit=`` and ``?offset=``. A larger limit counts as ``max_limit``; ``next`` has the address of the next page."""

    max_limit = 500
