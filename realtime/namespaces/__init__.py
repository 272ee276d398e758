"""The two namespaces that ship with the project, as declarations with their events: what all processes need of them.

The apps `hub` and `portal` hold what only the socket server does for their connections. A module here may use the
kernel; it names those apps, and presence, as dotted paths only, so that a backbone publishes without them.
"""
