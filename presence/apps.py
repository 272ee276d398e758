from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class PresenceConfig(AppConfig):
    """The web side of presence: models, admin, recorder."""

    name = "presence"
    verbose_name = _("Presence")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from presence import checks  # noqa: F401, PLC0415  (registers it)
