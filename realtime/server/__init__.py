"""The socket server process: uvicorn's protocols with bounds, plain HTTP endpoints, readiness and life cycle.

It carries bytes between sockets and the ASGI application. What a frame or an event means is decided in
`realtime.connections`.
"""
