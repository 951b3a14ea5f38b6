"""Vectors of texts, and how near they are to each other.  The server needs --pooling mean where the model says none."""

from openai import OpenAI

TEXTS = ["The cat sat on the mat.", "A cat was sitting on a rug.", "Interest rates rose again."]

client = OpenAI()
answer = client.embeddings.create(model=client.models.list().data[0].id, input=TEXTS)
vectors = [entry.embedding for entry in answer.data]
for text, vector in zip(TEXTS, vectors, strict=True):
    nearness = sum(a * b for a, b in zip(vectors[0], vector, strict=True))
    print(f"{nearness:.3f}  {text}")
