from django.apps import AppConfig


class RealtimeConfig(AppConfig):
    name = "realtime"

    def ready(self) -> None:
        from realtime.checks import production, startup  # noqa: F401, PLC0415  (registers them)
