"""Django settings: the base that both sides share, one module for the sockets, one for the web side.

They translate the environment into settings. A value that the code reads at run time has its default and its
validation in `realtime.conf`.
"""
