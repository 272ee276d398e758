"""The recorder: presence transitions from their stream in Redis into the database.

The reader of the stream is here, with the rows it writes and the search for users whom Redis has lost. It belongs to
the web side, so nothing that a socket server or a bridge runs may import it.
"""
