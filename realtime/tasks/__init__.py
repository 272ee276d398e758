"""Tasks and the values that belong to an event loop: supervision, serial execution, one value for each loop.

They know nothing of what Redis holds, of connections or of namespaces. A task that runs for as long as its process does
is run by `supervise`, wherever it is started.
"""
