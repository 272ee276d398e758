"""Connections to Redis: address and topology, pipelined commands, Pub/Sub, leases, streams and key names.

A caller neither knows nor asks whether it is served by one server, by Sentinel's primary or by a Cluster. What is
stored under a key, and what a channel carries, is decided by the packages above.
"""
