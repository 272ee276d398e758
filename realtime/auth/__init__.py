"""Who a user is, and what was taken away from them: credentials, tokens, claims, and the records of revocations.

A token becomes a `Principal` here, with the keys of `SIMPLE_JWT` or of an identity provider. Connections and handshakes
do not belong here: this package knows neither frames nor rooms' members.
"""
