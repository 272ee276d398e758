"""The kernel: a socket server, a bridge and a publisher for any number of namespaces.

docs/architecture.md shows its packages and which may import which. The namespaces themselves and
presence are apps of their own, which the kernel does not import.
"""
