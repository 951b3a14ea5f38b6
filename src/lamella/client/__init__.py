"""A running server, spoken with over HTTP: chats that stream, its variants, and switching between them.

with ServerClient("http://127.0.0.1:8080") as server:
    answer = server.chat([{"role": "user", "content": "Why is the sea salty?"}])
    for piece in answer:
        print(piece, end="")
"""
