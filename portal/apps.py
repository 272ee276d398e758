from django.apps import AppConfig


class PortalConfig(AppConfig):
    """The policy of the customers' namespace: for processes that serve connections."""

    name = "portal"
    default_auto_field = "django.db.models.BigAutoField"
