"""The web side: token endpoints, login limits, URLs and the ASGI application of Django.

It is the only package of the kernel besides the publisher that may use the database. The socket server and the bridge
never import it.
"""
