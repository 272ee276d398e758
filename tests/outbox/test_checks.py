from __future__ import annotations

import pytest
from django.conf import settings as django_settings

from realtime.outbox.checks import check_outbox


class Router:
    """Sends the outbox somewhere, and may keep its table out."""

    alias, migrates = "default", True

    def db_for_write(self, model, **_):
        return self.alias if model._meta.app_label == "realtime_outbox" else None

    def allow_migrate(self, db, app_label, **_):
        return self.migrates if app_label == "realtime_outbox" else None


class Elsewhere(Router):
    alias = "elsewhere"


class WithoutTable(Router):
    migrates = False


def found() -> list[str]:
    return [str(message.id) for message in check_outbox(None)]


def test_settings_of_the_web_side_are_fine():
    assert found() == []


def test_outbox_without_the_publisher_is_reported(settings):
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "realtime"]
    assert found() == ["realtime.E040"]


@pytest.mark.parametrize(("router", "number"), [(Elsewhere, "E041"), (WithoutTable, "E042")])
def test_router_that_leaves_it_without_a_table_is_reported(router, number: str, settings):
    settings.DATABASE_ROUTERS = [f"{router.__module__}.{router.__name__}"]
    assert found() == [f"realtime.{number}"]


def test_settings_without_a_database_are_reported(monkeypatch):
    monkeypatch.setattr(django_settings, "DATABASES", {})
    [message] = check_outbox(None)
    assert message.id == "realtime.E041"
    assert message.hint is not None
