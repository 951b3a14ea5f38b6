"""The store: one model at many precisions, its layers shared, as plain files (docs/store-format.md).

layout   names and places inside a store
files    writing that is whole or not there at all; file system errors
locks    who may work at the same time
verify   does every shard hash to its name
gc       what nobody needs, removed
usage    what the variants cost together and alone
store    ``Store``, which joins them
"""
