"""The protocol as values and rules: events, frames, bus messages, rooms, close codes and payloads.

Both sides of the project and the documentation are derived from these definitions. Nothing here does I/O, starts a
task or knows who is connected.
"""
