"""The team's namespace: its declaration, its policy, its consumer, and the events of its queue.

A module here may use the kernel and presence. It may not use the portal, and nothing here touches a database.
"""
