from django.apps import AppConfig


class ServerConfig(AppConfig):
    """The socket server and the bridge."""

    name = "realtime.server"
    label = "realtime_server"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from realtime.checks import sides  # noqa: PLC0415

        sides.register_checks("realtime.server")
