"""The sockets, and delivery, inside the process of a project: routes beside its pages, and the life of an instance.

What is served and delivered is made in `realtime.server`, `realtime.bridge` and `presence`, and apps add what they run
(`run_inline`). It is wiring: nothing but `realtime.asgi`, the commands and the test tools may import it.
"""
