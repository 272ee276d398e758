"""How this project speaks to Redis: URLs, topology, connections, the retry rule, Pub/Sub, streams and leases.

Everything here takes keys, channels and bytes, and knows neither rooms nor users. What is kept in Redis, and why, is
decided in the packages above (`realtime.layers`, `realtime.connections`, `realtime.bridge`).
"""
