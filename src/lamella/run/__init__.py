"""Tokens in, tokens out, and a change of precision between two of them.

engine         Engine: opens a variant, generates, prepares and makes switches
starting       which variant fits, before anything is loaded; loading: the model at it, and its context
generation     one running generation: an iterator of tokens with its statistics
prefix         what a prompt shares with the one before
text           bytes of tokens to text: incremental UTF-8, stop strings
chat           what a chat consists of

variants       LiveVariants: which variant computes, and the switch from one to another
preparing      getting variants into memory in the background; prepared: one on its way in, and what a switch did
weight_memory  what is open under the ceiling, and what is closed; open_variants: which variants, and who needs them
pointers       where the weights point
stepwise       a switch shard by shard, where memory does not hold both variants
shards         open shards of a store: mapped, prefaulted, repacked
ceiling        what may be open under a memory ceiling; process_memory: what this process takes

layouts        mapped or repacked, for each type and phase: the pure choice
kernel_table   the measured speeds that choice needs, kept between runs; prices: the same for plans
"""
