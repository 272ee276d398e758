"""What the team's administrators see: presence, connections, dead letters and availability.

The only part of `presence` with views, templates and SQL, besides the recorder. Nothing near a socket imports it.
"""

from presence.admin import availability, dead_letters, live, records  # noqa: F401  (they register themselves)
