"""A small Redis: what our code asks of one, its Lua scripts included, on simulated time.

Unlike a real one it lets us lose what was written last: start it again with an older copy of its database. A command
that it does not know ends the simulation: then it has to learn it.

`server` is made of a class for each kind of value, with the commands on it (`strings`, `hashes`, `streams` …), over the
keys that all of them share (`keys`).
"""
