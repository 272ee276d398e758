"""Settings of the web side: admin, token endpoint, recorder and, in development, the demo. It has the database."""

import os
from datetime import timedelta

import django
from django.core.exceptions import ImproperlyConfigured

from realtime.extras import require

require("realtime.settings.web", "web")

import dj_database_url  # noqa: E402

from realtime.settings.base import *  # noqa: E402, F403
from realtime.settings.base import BASE_DIR, DEBUG, SECRET_KEY, SIMPLE_JWT, flag  # noqa: E402

if not SECRET_KEY:
    raise ImproperlyConfigured("SECRET_KEY is not set; the web side signs sessions with it")

try:
    DATABASES = {
        "default": dj_database_url.config(
            default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}", conn_max_age=60, conn_health_checks=True
        )
    }
except ValueError as error:
    raise ImproperlyConfigured(
        "DATABASE_URL must be postgres://… or sqlite:///…, got another address"
    ) from error
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # The web side and the recorder write to the same file: each waits for the other from the start of a transaction.
    # (Django 4.2 cannot do that. There a transaction that reads first may fail while the other side writes.)
    _mode = {"transaction_mode": "IMMEDIATE"} if django.VERSION >= (5, 1) else {}
    DATABASES["default"]["OPTIONS"] = {**_mode, "timeout": 20, **DATABASES["default"].get("OPTIONS", {})}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "realtime.web",  # before the admin, whose frame gets an icon from it
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "rest_framework_simplejwt.token_blacklist",
    "realtime",
    "presence",
    *(["demo", "realtime.outbox"] if DEBUG else []),  # the demo is a backbone
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "realtime.web.urls"
# The browser chooses (Accept-Language).
LANGUAGES = [("en", "English"), ("pt-br", "Português do Brasil")]
LANGUAGE_CODE = "en"
# The time zone in which the admin shows days and times.
TIME_ZONE = os.environ.get("TIME_ZONE") or "UTC"
STATIC_URL = "static/"
STATIC_ROOT = os.environ.get("STATIC_ROOT") or BASE_DIR / "static"
WHITENOISE_USE_FINDERS = DEBUG

# For a proxy that ends TLS and overwrites X-Forwarded-Proto.
if flag("WEB_HTTPS"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 365 * 86400
# Whether a whole domain is https permanently is the decision of its owner.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

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
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework_simplejwt.authentication.JWTAuthentication"],
    "EXCEPTION_HANDLER": "realtime.web.errors.answer_error",
}
# Logins are counted here; each process counts for itself unless another cache is configured.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "OPTIONS": {"MAX_ENTRIES": 100_000},
    }
}
SIMPLE_JWT = {
    **SIMPLE_JWT,
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=15),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=1),
    "ROTATE_REFRESH_TOKENS": True,
    "BLACKLIST_AFTER_ROTATION": True,
    "TOKEN_OBTAIN_SERIALIZER": "realtime.web.token_claims.TokenSerializer",
    "TOKEN_REFRESH_SERIALIZER": "realtime.web.token_claims.RefreshSerializer",
}
