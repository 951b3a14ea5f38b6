"""The only border to C: llama.cpp and ggml through ``llama-cpp-python``.

    library       find, load and check the shared libraries; prove the struct layout
    api           declarations that llama-cpp-python lacks
    log           what llama.cpp says, silent unless asked for
    looking       the child process that opens a foreign file first

    gguf          read and write GGUF headers with ggml's own parser; rows: stored rows by position
    imatrix       importance matrices, in llama.cpp's format
    quantize      rows of float32 to ggml types and back; rounding: one scale a row (LSAQ eq. 4)
    stock_mix     the types that llama-quantize would choose

    devices       what ggml can compute on, and its memory; rpc: devices of other processes
    kernels       how fast this machine multiplies by weights of a type; scratch: graphs of our own, to time them
    blas          how many threads numpy's products take
    handle        base of what owns a C object
    model         a loaded model
    vocabulary    its tokens
    weights       its weights: locate, point elsewhere, restore; device_shards: in a device's memory
    openmp        threads that llama.cpp computes with, and letting them go
    pages         pages of mapped files: read in ahead, given back, counted

    context       KV cache and passes through the model; memory: what it will allocate, by a dry run
    batch         tokens on their way into the model
    observing     the nodes of a pass
    embeddings    vectors of texts
    logits        arithmetic on what a pass gives
    saving        a whole KV cache in a file
    reproducible  logits that do not depend on what else is computed

    sampling      drawing the next token; adjusting and candidates belong to it
    guide         following a grammar token by token; gbnf and ambiguity keep bad ones away
    grammar       grammars for JSON; json_schema belongs to it
    chat_template chats to prompts; template_limits bounds what a template computes

Importing these modules loads no library: that happens in ``library.load()``, on first use.
"""
