"""What travels: pydantic models of requests and answers, named as OpenAI names them. An unknown field is an error."""
