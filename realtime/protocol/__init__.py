"""The protocol as values and rules: ids, rooms, events, payloads, envelopes, close codes, bus messages.

Everything here is decided from its arguments and the settings, and can be tested without a socket or Redis. No module
of this package does I/O, and none may import a package above it.
"""
