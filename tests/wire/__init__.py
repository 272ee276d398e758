"""Payload types at random, and events with a field of every type."""
