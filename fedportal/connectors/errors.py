"""What can go wrong between portal and site. Whether to try again is in the type."""

from __future__ import annotations


class SiteError(Exception):
    """Base of all site errors. ``remedy`` says what a person can do about it."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class SiteUnreachable(SiteError):
    """No answer, or a passing fault: try again later."""


class SiteNotReady(SiteUnreachable):
    """The site answers, and cannot work yet: somebody has paused it, or a part of it is down."""


class SiteResting(SiteUnreachable):
    """The site has not answered for a while, and nobody asks it before ``seconds`` are over."""

    def __init__(self, message: str, *, remedy: str = "", seconds: float) -> None:
        super().__init__(message, remedy=remedy)
        self.seconds = seconds


class SiteRefused(SiteError):
    """The site answered no (login, rights, missing DAG): trying again changes nothing until somebody acts."""


class SiteMisbehaved(SiteError):
    """The site's answer makes no sense (other product, other version, broken)."""


class StoreError(Exception):
    """Base of all object-store errors."""


class StoreUnreachable(StoreError):
    """The object store does not answer, or answers with a passing fault: try again later."""


class ObjectMissing(StoreError):
    """There is no object with that key."""


class ObjectDamaged(StoreError):
    """An object is not what it should be: other size or SHA-256 than announced, or too large."""
