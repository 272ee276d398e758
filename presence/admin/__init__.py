"""The admin: recorded presence, hours over time, the live view and dead letters.

Views, forms and the steps of operators live here, with their templates in presence/templates. They belong to the web
side, so nothing that a socket server or a bridge runs may import them.
"""

from presence.checks import foreign_kernel

if not foreign_kernel():  # else the system check says so
    from presence.admin import availability, dead_letters, live, records  # noqa: F401  (they register themselves)
