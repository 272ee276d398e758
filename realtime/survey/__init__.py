"""Surveys: the questions that the web side asks all instances, and the answers that it collects.

An instance answers from memory, and nothing is stored for it. The pages that show the answers live in
`presence.admin`; what an instance holds is the business of `realtime.connections`.
"""
