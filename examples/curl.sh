#!/usr/bin/env bash
# Everything with curl.  OPENAI_BASE_URL and OPENAI_API_KEY say where (examples/README.md).
set -euo pipefail
v1=${OPENAI_BASE_URL:-http://127.0.0.1:8080/v1}
server=${v1%/v1}
ask() { # ask PATH [JSON]: a request with the key; a body makes it a POST
    curl --silent --show-error --fail-with-body --no-buffer "$1" -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" \
        ${2:+-H 'Content-Type: application/json' --data "$2"}
    echo
}

echo "# models"
ask "$v1/models"

echo "# a chat"
ask "$v1/chat/completions" '{"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 20}'

echo "# a stream"
ask "$v1/chat/completions" '{"messages": [{"role": "user", "content": "Count to three."}], "max_tokens": 20, "stream": true}'

echo "# text that goes on, at one variant for this request alone"
variant=$(ask "$server/admin/variants" | grep -o '"name":"[^"]*"' | tail -1 | cut -d'"' -f4)
ask "$v1/completions" "{\"model\": \"@$variant\", \"prompt\": \"The sky is\", \"max_tokens\": 8}"

echo "# JSON that follows a schema"
ask "$v1/chat/completions" '{"messages": [{"role": "user", "content": "How old is the oldest tree?"}], "max_tokens": 40, "temperature": 0,
    "response_format": {"type": "json_schema", "json_schema": {"name": "age", "schema":
        {"type": "object", "properties": {"age": {"type": "integer", "maximum": 9999}}, "required": ["age"]}}}}'

echo "# a vector"
ask "$v1/embeddings" '{"input": "a text"}' | cut -c1-200

echo "# another variant for everybody, and back"
running=$(ask "$server/admin/status" | grep -o '"variant":"[^"]*"' | head -1 | cut -d'"' -f4)
ask "$server/admin/switch" "{\"variant\": \"$variant\"}"
ask "$server/admin/switch" "{\"variant\": \"$running\"}"

echo "# figures for Prometheus"
ask "$server/metrics" | grep '^lamella_tokens_total'
