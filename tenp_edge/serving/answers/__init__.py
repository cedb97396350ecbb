"""The JSON that goes back, API by API: whole answers, and events of a stream.

`choice` collects what is generated; every API spells it in its own way.
"""
