"""Stores on other machines: take a variant from one, give it to one, be one (docs/store-format.md, "Remote stores").

addresses      what people write: URL@VARIANT
web            one way of speaking HTTP: no compression, bounded redirects, a token for one host, cut connections named
remote_store   ``RemoteStore``: the documents and shards of a store behind a URL
manifest       what a remote document may say, before anything it says is used
headers        a shard's GGUF header, read without trusting it
checking       a shard's header against the plan, a variant's structure against the store
fetching       one shard into a part file, resumed until its hash is right
pull           what a local store lacks, fetched; the variant last
push           what a remote store or folder lacks, sent; the variant last
serving        a store as a read-only web application
hub            GGUF files from the Hugging Face Hub
conversion     safetensors to GGUF with llama.cpp's own script
"""
