from django.apps import AppConfig


class RealtimeConfig(AppConfig):
    """The publisher, for every process that publishes."""

    name = "realtime"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from realtime.checks import collisions, publishing  # noqa: F401, PLC0415  (registers them)
