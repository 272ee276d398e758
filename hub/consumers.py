"""A connection of the team's namespace."""

from __future__ import annotations

from presence.connection import CustomerStates, TeamPresence


class HubConsumer(CustomerStates, TeamPresence):
    """A connection to `/hub/`: its user is listed with the team, and sees the customers of the threads it enters."""
