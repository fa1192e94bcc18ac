"""Settings of the portal: one file, everything from the environment, safe values as defaults.

``docs/operations.md`` lists the variables. Without its secrets the portal does not start, unless ``DEBUG`` is on.
"""

import hashlib
import re
from pathlib import Path

import environ
from django.core.exceptions import ImproperlyConfigured

# --- identity -------------------------------------------------------------------------------------
BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()
DEBUG = env.bool("DEBUG", default=False)
STATE_DIR = Path(env("FEDPORTAL_STATE", default=str(BASE_DIR / "var")))
STATE_DIR.mkdir(parents=True, exist_ok=True)
VERSION = re.search(r"^## \[?v?([0-9][^\]\s]*)", (BASE_DIR / "CHANGELOG.md").read_text(), re.MULTILINE)[1]


def secret(name: str) -> str:
    """Return a secret from NAME or from the file named by NAME_FILE; with DEBUG, fall back to an insecure default."""
    if path := env(f"{name}_FILE", default=""):
        return Path(path).read_text().strip()
    if value := env(name, default=""):
        return value
    if DEBUG:
        return f"insecure-{name}-for-development-only-0123456789abcdef"
    raise ImproperlyConfigured(f"Set {name} (or {name}_FILE): the portal does not start without it.")


SECRET_KEY = secret("SECRET_KEY")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

# --- apps -----------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "daphne",  # first: its runserver speaks websockets
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.forms",  # its widget templates, for the form renderer
    "rest_framework",
    "knox",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "fedportal.ui",
    "fedportal.accounts",
    "fedportal.sites",
    "fedportal.experiments",
    "fedportal.relay",
    "fedportal.monitoring",
    "fedportal.orchestrator",
]

# --- middleware -----------------------------------------------------------------------------------
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "fedportal.ui.middleware.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "fedportal.ui.middleware.SignInMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "fedportal.ui.middleware.DomainErrorMiddleware",
]
CSRF_FAILURE_VIEW = "fedportal.ui.views.csrf_failure"
ROOT_URLCONF = "fedportal.urls"
ASGI_APPLICATION = "fedportal.asgi.application"
FORM_RENDERER = "fedportal.ui.forms.PortalRenderer"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
            "builtins": ["fedportal.ui.templatetags.ui"],
        },
    }
]

# --- database -------------------------------------------------------------------------------------
DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{STATE_DIR / 'fedportal.sqlite3'}")}
DATABASES["default"]["CONN_MAX_AGE"] = 60
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Writers queue instead of failing, readers never wait. NORMAL is durable against a killed process (WAL).
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- channels: sockets tail rows, so there is no layer -----------------------------------------------
CHANNEL_LAYERS = {}

# --- object store: any S3 ---------------------------------------------------------------------------
OBJECT_STORE = {
    "endpoint": env("FEDPORTAL_S3_ENDPOINT", default="127.0.0.1:9000"),
    "public_endpoint": env("FEDPORTAL_S3_PUBLIC_ENDPOINT", default=""),
    "access_key": env("FEDPORTAL_S3_ACCESS_KEY", default=""),
    "secret_key": secret("FEDPORTAL_S3_SECRET_KEY"),
    "bucket": env("FEDPORTAL_S3_BUCKET", default="fedportal"),
    "region": env("FEDPORTAL_S3_REGION", default="us-east-1"),
    "secure": env.bool("FEDPORTAL_S3_SECURE", default=not DEBUG),
    "ca_file": env("FEDPORTAL_S3_CA_FILE", default="") or None,
}

# --- sign-in ----------------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["fedportal.accounts.authentication.PatientBackend"]
LOGIN_URL = "accounts:login"
LOGIN_REDIRECT_URL = "monitoring:dashboard"
LOGOUT_REDIRECT_URL = "accounts:login"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "fedportal.accounts.authentication.PortalTokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_PAGINATION_CLASS": "fedportal.ui.pagination.PortalPagination",
    "PAGE_SIZE": 50,
    "EXCEPTION_HANDLER": "fedportal.ui.errors.api_exception_handler",
    "DEFAULT_PARSER_CLASSES": [
        "fedportal.ui.parsers.PortalJSONParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",
    ],
}
SPECTACULAR_SETTINGS = {
    "TITLE": "fedportal",
    "DESCRIPTION": "Federated learning for medical image segmentation across hospitals.",
    "VERSION": VERSION,
    "SERVE_INCLUDE_SCHEMA": False,
    # it contains no secrets, but takes a second of CPU time to build: not for strangers
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "fedportal.ui.schema.add_summaries",
    ],
    "ENUM_NAME_OVERRIDES": {
        "ExperimentStateEnum": "fedportal.experiments.states.ExperimentState.choices",
        "ExperimentKindEnum": "fedportal.experiments.models.Kind.choices",
        "RoleEnum": "fedportal.accounts.models.Role.choices",
        "SubjectRoleEnum": "fedportal.monitoring.comparison.Role.choices",
    },
    "APPEND_COMPONENTS": {
        "securitySchemes": {
            "attemptToken": {
                "type": "http",
                "scheme": "bearer",
                "description": "Token of one attempt of a site run. The trainer derives it from the site's key.",
            }
        }
    },
    "SWAGGER_UI_DIST": "SIDECAR",
}

# --- static files -----------------------------------------------------------------------------------
STATIC_URL = "static/"
STATIC_FROM_SOURCE = env.bool("FEDPORTAL_STATIC_FROM_SOURCE", default=DEBUG)
"""Serve static files from the source folders, without ``collectstatic``: for development and the demo."""
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "fedportal.ui.staticfiles.PlotlyFinder",  # plotly.min.js from the plotly wheel
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if STATIC_FROM_SOURCE
        else "whitenoise.storage.CompressedManifestStaticFilesStorage"
    },
}
WHITENOISE_USE_FINDERS = STATIC_FROM_SOURCE
LANGUAGE_CODE = "en-gb"
FORMAT_MODULE_PATH = "fedportal.ui.formats"
USE_TZ = True
TIME_ZONE = "UTC"

# --- security ---------------------------------------------------------------------------------------
HTTPS = env.bool("FEDPORTAL_HTTPS", default=not DEBUG)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_SSL_REDIRECT = HTTPS and env.bool("FEDPORTAL_SSL_REDIRECT", default=True)
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
if env.bool("FEDPORTAL_BEHIND_PROXY", default=False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Named as in Django 6, where it is built in. Plotly sets inline style attributes, never <style> from strangers.
SECURE_CSP = {
    "default-src": ["'self'"],
    "img-src": ["'self'", "data:", "blob:"],
    "style-src": ["'self'", "'unsafe-inline'"],
    "script-src": ["'self'"],
    "connect-src": ["'self'"],
    "object-src": ["'none'"],
    "base-uri": ["'none'"],
    "frame-ancestors": ["'none'"],
    "form-action": ["'self'"],
}

# --- logging ----------------------------------------------------------------------------------------
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env("LOG_LEVEL", default="INFO")},
    # when it repeats a request, it logs the whole address with its signature
    "loggers": {"urllib3.connectionpool": {"level": "ERROR"}},
}

# --- fedportal --------------------------------------------------------------------------------------
FEDPORTAL_KEYS = env.list("FEDPORTAL_KEYS", default=[])
"""Fernet keys for site credentials: the first encrypts, all decrypt."""
if not FEDPORTAL_KEYS and (path := env("FEDPORTAL_KEYS_FILE", default="")):
    FEDPORTAL_KEYS = Path(path).read_text().split()
FEDPORTAL_PUBLIC_URL = env("FEDPORTAL_PUBLIC_URL", default="http://127.0.0.1:8000").rstrip("/")
"""Address under which sites reach the portal (metric records)."""
FEDPORTAL_ATTEMPT_SECRET = hashlib.sha256(b"attempts:" + SECRET_KEY.encode()).digest()
FEDPORTAL_FILE_RELAY = env.bool("FEDPORTAL_FILE_RELAY", default=False)
"""Whether this process relays files between polling sites and the store. Only one with a streaming server should."""
FEDPORTAL_SPOOL = Path(env("FEDPORTAL_SPOOL", default=str(STATE_DIR / "spool")))
"""Where the orchestrator keeps updates while it aggregates them. It may be emptied at any time."""
FEDPORTAL_TRAINER_SOCKET = env("FEDPORTAL_TRAINER_SOCKET", default=str(STATE_DIR / "trainer.sock"))
FEDPORTAL_WORKER_ID = env("FEDPORTAL_WORKER_ID", default="")
FEDPORTAL_AGGREGATION_MEMORY = env.int("FEDPORTAL_AGGREGATION_MEMORY_MB", default=4096) * 2**20
FEDPORTAL_TRAINER_MEMORY = env.int("FEDPORTAL_TRAINER_MEMORY_MB", default=8192) * 2**20
"""Most memory for the trainer on the portal's machine, to make an initial model or a bundle."""
FEDPORTAL_MOST_PARAMETERS = env.int("FEDPORTAL_MOST_PARAMETERS", default=250_000_000)
"""A recipe with a larger network is refused: 250 million parameters are 1 GB per update and site."""
FEDPORTAL_TRAINING_MEMORY = round(env.float("FEDPORTAL_TRAINING_MEMORY_GB", default=80.0) * 10**9)
"""A recipe that needs more memory at a site is refused: the largest common GPUs have 80 GB."""
FEDPORTAL_SMALL_COUNT = env.int("FEDPORTAL_SMALL_COUNT", default=5)
"""Smaller numbers of cases are shown only to operators and the site's stewards."""
FEDPORTAL_URL_HOURS = env.float("FEDPORTAL_URL_HOURS", default=24.0)
