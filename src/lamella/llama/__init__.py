"""The only border to C: llama.cpp and ggml through ``llama-cpp-python``.

    library       find, load and check the shared libraries; prove the struct layout
    api           declarations that llama-cpp-python lacks
    gguf          read and write GGUF headers with ggml's own parser
    imatrix       importance matrices, in llama.cpp's format
    devices       what ggml can compute on, and its memory
    handle        base of what owns a C object
    model         a loaded model
    vocabulary    its tokens
    batch         tokens on their way into the model
    context       KV cache and passes through the model
    observing     the nodes of a pass
    embeddings    vectors of texts
    logits        arithmetic on what a pass gives
    sampling      drawing the next token; adjusting and candidates belong to it
    guide         following a grammar token by token; gbnf and ambiguity keep bad ones away
    grammar       grammars for JSON; json_schema belongs to it
    chat_template chats to prompts
    weights       the weights of a loaded model: locate, point elsewhere, restore
    quantize      rows of float32 to ggml types and back

Importing these modules loads no library: that happens in ``library.load()``, on first use.
"""
