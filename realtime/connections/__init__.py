"""Client connections: admission and handshake, the consumer, its limits, its events, and the instance's registry.

What both namespaces share is here. A namespace's own events and policies live in its app, and the bytes on the
socket are written by `realtime.server`.
"""
