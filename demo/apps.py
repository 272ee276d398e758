from django.apps import AppConfig


class DemoConfig(AppConfig):
    """A small support desk that publishes through `realtime.publisher`. Development only."""

    name = "demo"
