"""Descriptions generated from the catalogue of events: AsyncAPI, JSON Schema, Markdown and TypeScript.

Every function here turns the catalogue into text and changes nothing. A rule of the protocol that only a generator
knows does not belong here but in `realtime.protocol`.
"""
