"""Surveys: what an operator asks all instances, and what each of them answers about its connections and load.

The messages are on the wire between versions. Answering (`realtime.connections.survey_responder`) and showing the
answers (the admin) do not belong here.
"""
