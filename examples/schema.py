"""An answer that follows a JSON schema: the grammar lets the model write nothing else."""

import json

from openai import OpenAI

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "born": {"type": "integer"},
        "profession": {"enum": ["physicist", "painter", "author"]},
    },
    "required": ["name", "born", "profession"],
    "additionalProperties": False,
}

client = OpenAI()
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "Who was Albert Einstein? Answer as JSON."}],
    response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
    max_tokens=80,
    temperature=0,
)
print(json.loads(answer.choices[0].message.content or ""))
