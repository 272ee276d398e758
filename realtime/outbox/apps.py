from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class OutboxConfig(AppConfig):
    name = "realtime.outbox"
    label = "realtime_outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from realtime.outbox import checks  # noqa: F401, PLC0415  (registers them)

    async def run_inline(self) -> None:
        """Relay until cancelled, in a process that does everything (`REALTIME_INLINE`)."""
        from realtime.outbox.inline import relay  # noqa: PLC0415  (needs the models)

        await relay()
