"""What the processes report about themselves: metrics, log formats and traces.

Every other package may report through this one. It measures and formats; it decides nothing, and it never sees a
token, a payload or a user's name as a label.
"""
