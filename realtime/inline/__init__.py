"""The sockets, and delivery, inside the process of a project: routes beside its pages, and the life of an instance.

What is served and delivered is made in `realtime.server`, `realtime.bridge` and `presence`. It is wiring: nothing but
`realtime.asgi` and the commands may import it.
"""
