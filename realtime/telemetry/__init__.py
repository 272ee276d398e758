"""Telemetry: metrics, logs and traces of every process.

Here is what is counted, logged or traced for operators, and how it leaves the process. Whatever decides something, or
speaks to Redis, does not belong here: telemetry may fail or be switched off, and nothing else changes.
"""
