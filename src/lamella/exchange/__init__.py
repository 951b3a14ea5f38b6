"""Variants of a store and single GGUF files, each from the other.

metadata    what an exported file says about itself: ``lamella.*`` and the keys of stock tools
exporting   a variant's shards, joined to one file that any llama.cpp program opens
importing   a file of any tool, taken into a store as it is
"""
