"""OpenAI's dialect: request models, routes, and the bytes of answers and streams."""
