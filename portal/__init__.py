"""What the socket server does for customers: the policy of the namespace `realtime.namespaces.portal`.

A module here may use the kernel and presence. It may not use the hub, and nothing here touches a database.
"""
