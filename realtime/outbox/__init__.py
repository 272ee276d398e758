"""The outbox: bus messages in the team's own database, from their transaction until Redis has them.

It lives on the side that has the database: `realtime.publisher` writes rows, requests and relays send them. Nothing
near a socket imports it.
"""
