"""Building blocks for asyncio: values that belong to one event loop, supervised tasks, and a serial executor.

They know nothing about sockets, Redis or Django, and could serve any other program. Code that only makes sense for a
connection, a room or the bus belongs to the package of that noun.
"""
