"""Connections of clients: the handshake, frames, rooms, typing, expiry, and the registry of all of them.

A connection is a consumer with small parts, which know it by `interface.Connection`. What a single namespace does
belongs in that namespace's app; how bytes travel belongs in `realtime.server` and `realtime.layers`.
"""
