"""The HTTP service: an engine in a process of its own behind an OpenAI-compatible API.

A request passes these modules, from the outside in, and its answer passes them back:

- `server` listens and handles signals, on `connections`, which limits them.
- `app` is the application; `middleware` checks API keys and deadlines, and writes the log.
- `routes` has a file for each family of endpoints; `wire` has the fields of requests and answers.
- `replies` prepares a conversation: `data.chat` makes tokens of messages, and `grammars` the form that an answer must
  have.
- `service` makes requests to the engine from the fields of a request.
- `engine_process` hands them to the engine, whose process `engine_worker` runs, and restarts it if it dies.
- `generation` collects what the engine makes, and sends it; `data.chat` splits its text into reasoning, content and
  tool calls.

`terminal` is `gossamer chat`.
"""
