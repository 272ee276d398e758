"""System checks: settings that cannot work, and settings that are unsafe in production.

A check reads settings only; it connects to nothing, and is registered by the app that it concerns. Each message has a
number that docs/settings.md explains. Numbers from 101 on belong to the checklist for production, docs/deployment.md: a
warning is about a setting that is wrong there, an info about one that may be right.
"""
