"""The bridge: reads bus messages from Redis, validates, routes and encodes them, and sends them to rooms in batches.

It runs under a lease and knows rooms only by name. Connections, policies and namespaces are not visible from here.
"""
