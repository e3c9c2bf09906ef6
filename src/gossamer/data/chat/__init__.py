"""Conversations: what a chat template makes of messages, and what the text of an answer says.

- `template` makes tokens of messages, with `template_process` in a process of its own.
- `output_parser` splits text into reasoning, content and tool calls, which `tool_calls` reads; `json_schema` says what
  their parameters are.

The service and training on conversations use the same code, so what is learned is what is asked for.
"""
