"""Conversations: from files to packed rows of prompts and answers, with the code that serves them.

- `records`: every line of the files in its normal form, by `record_files`, `forms` and `messages`. Start reading here.
- `samples`: the tokens of prompts and answers, which `turns` and `transcripts` find (`chat_reader`), and
  which of them are learned; `summary` is what people should know.
- `rows`: the rows of a step, and what is held out.
- `template` makes tokens of messages, with `special_marks`; `renderer` runs templates, with `template_process` in a
  process of its own; `chatml` is a template of our own.
- `output_parser` splits text into reasoning, content and tool calls, which `tool_calls` reads; `json_schema` says what
  their parameters are.

The service and training on conversations use the same code, so what is learned is what is asked for.
"""
