"""The catalogue written out for readers: an AsyncAPI document, TypeScript types and a page of Markdown.

`json_schema` is the only module that walks the types of payloads; the three outputs are made of the schemas it returns.
Nothing here is needed to deliver an event, so no package on the path of a message may import this one.
"""
