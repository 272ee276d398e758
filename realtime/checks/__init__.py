"""System checks: settings that cannot work, and settings that are unsafe in production.

A check reads settings only; it connects to nothing. Each message has a number that docs/settings.md explains, and says
what was expected and what was found.
"""
