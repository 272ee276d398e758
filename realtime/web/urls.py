"""The web side's URLs."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from rest_framework_simplejwt.views import TokenRefreshView

from realtime.web.login_limit import limited
from realtime.web.token_claims import LoginView

admin.site.site_header = admin.site.site_title = "Realtime sockets"

urlpatterns: list[URLPattern | URLResolver] = [
    path("admin/login/", limited(admin.site.login)),
    path("admin/", admin.site.urls),
    path("token/", LoginView.as_view(), name="token"),
    path("token/refresh/", TokenRefreshView.as_view(), name="token-refresh"),
]
if settings.DEBUG:
    urlpatterns.append(path("", include("demo.urls")))
