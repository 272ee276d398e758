"""Management commands: each parses its arguments and calls one function of another package.

A command answers bad input with one line and exit status 2. Logic that is worth a test of its own lives in the package
that the command calls.
"""
