"""The pydantic models of requests and answers, with OpenAI's names; an unknown field is an error."""
