"""The HTTP service: an engine in a process of its own behind an OpenAI-compatible API.

From the outside in: ``server`` (sockets, signals), ``app`` and ``guard`` (keys, deadlines, log), ``routes`` (a file for
each family of endpoints; what travels is in ``wire``), ``turn`` with ``template`` (messages to tokens) and ``output``
(text to reasoning, content and tool calls), ``run`` (one request's generations), ``engine`` (the worker process,
watched and restarted), ``worker`` (what runs there). ``terminal`` is `gossamer chat`.
"""
