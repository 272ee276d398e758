"""Presence: which users are online, away or offline, and which customers are there.

The rules live in `scripts/apply.lua`, and around them what connections, the bridge and the sweeper do with presence;
`admin` and `recorder` are the web side. The kernel (`realtime`) does not import this package, except for what wires the
parts together, and only `admin`, `recorder` and `models` may touch a database.
"""
