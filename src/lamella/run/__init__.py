"""Tokens in, tokens out, and a change of precision between two of them.

engine        Engine: opens a variant, generates, prepares and makes switches
variants      LiveVariants: which variant computes, which are warm, and the switch itself
shards        open shards of a store: mapped, prefaulted, repacked
layouts       mapped or repacked, for each type and phase: the pure choice
kernel_table  the measured speeds that choice needs, kept between runs
generation    one running generation: an iterator of tokens with its statistics
text          bytes of tokens to text: incremental UTF-8, stop strings
chat          what a chat consists of
"""
