"""The bridge: it delivers what backbones put on the bus to the rooms.

Here are the reading of the streams and of Pub/Sub, the handlers of bus messages, batches, and dead letters. What a bus
message means belongs in `realtime.protocol` or in an app; connections are unknown here.
"""
