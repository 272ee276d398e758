from django.apps import AppConfig


class HubConfig(AppConfig):
    """The consumers and the policy of the team's namespace: for processes that serve connections."""

    name = "hub"
    default_auto_field = "django.db.models.BigAutoField"
