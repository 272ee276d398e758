"""What the socket server does for the team: the policy and the consumer of the namespace `realtime.namespaces.hub`.

A module here may use the kernel and presence. It may not use the portal, and nothing here touches a database.
"""
