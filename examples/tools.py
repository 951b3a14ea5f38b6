"""The model calls a function, and answers with its result."""

import json

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def weather(city: str) -> str:
    """What the tool says."""
    return f"{city}: rain, 11 degrees"


client = OpenAI()
model = client.models.list().data[0].id
messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]
first = client.chat.completions.create(
    model=model, messages=messages, tools=[WEATHER], tool_choice="required", max_tokens=80, temperature=0
)
calls = [call for call in first.choices[0].message.tool_calls or [] if call.type == "function"]
for call in calls:
    result = weather(**json.loads(call.function.arguments))
    print(f"{call.function.name}({call.function.arguments}) -> {result}")
    function = {"name": call.function.name, "arguments": call.function.arguments}
    asked = {"id": call.id, "type": "function", "function": function}
    messages.append({"role": "assistant", "tool_calls": [asked]})  # type: ignore[list-item]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
answer = client.chat.completions.create(model=model, messages=messages, max_tokens=40, temperature=0)
print(answer.choices[0].message.content)
