"""Settings of the tests: safe throw-away secrets, fast hashing, everything else as in production."""

import os
import tempfile

os.environ.setdefault("FEDPORTAL_STATE", tempfile.mkdtemp(prefix="fedportal-tests-"))
os.environ.setdefault("SECRET_KEY", "tests-only-secret-key-0123456789-abcdefghijklmnopqrstuvwxyz")
os.environ.setdefault("FEDPORTAL_S3_SECRET_KEY", "tests-only")
os.environ.setdefault("FEDPORTAL_KEYS", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
os.environ.setdefault("FEDPORTAL_HTTPS", "0")
os.environ.setdefault("FEDPORTAL_S3_SECURE", "0")

from fedportal.settings import *  # noqa: F403

if "sqlite3" in DATABASES["default"]["ENGINE"]:  # noqa: F405
    # A file, as in production: threads of an in-memory database share one cache and trip over its table locks.
    DATABASES["default"]["TEST"] = {"NAME": str(STATE_DIR / "tests.sqlite3")}  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = True
STATIC_ROOT = STATE_DIR / "static"  # noqa: F405
STATIC_ROOT.mkdir(exist_ok=True)  # WhiteNoise warns about a missing folder
