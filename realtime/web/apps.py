from django.apps import AppConfig


class WebConfig(AppConfig):
    """The web side that ships with the project: token endpoint, admin, login limits."""

    name = "realtime.web"
    label = "realtime_web"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from realtime.checks import sides  # noqa: PLC0415

        sides.register_checks("realtime.web")
