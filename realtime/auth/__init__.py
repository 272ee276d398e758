"""Who is calling and what was taken away: access tokens, their claims and keys, and the records of revocations.

A token is judged by its claims and by Redis alone; nothing here touches a database. Which room a user may enter is a
policy of the namespace, and what a handshake is answered is decided in `realtime.connections`.
"""
