"""A plan made real: a model's tensors converted, layer by layer, into shards of a store.

channel   LSAQ eq. 4: one scale a row, in ggml's containers
tuned     ggml's rounding, block after block, each making up for the errors of those before
tensor    one tensor in row chunks: read, convert, check
recipe    what determines a shard's bytes, before it is made
shard     the header of a shard file
build     ``build_variant``: plan + source -> variant
making    its shards, made on all cores
rebuild   shards made again, bit for bit
suppliers shards fetched again from where they were pulled
repair    damaged and missing shards got back
trimming  shards dropped that can be made again
"""
