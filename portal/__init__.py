"""The customers' namespace: its declaration, its policy, and the events of chats and of rights to threads.

A module here may use the kernel and presence. It may not use the hub, and nothing here touches a database.
"""
