"""The store: one model at many precisions, its layers shared, as plain files (docs/store-format.md).

layout     names and places inside a store
files      writing that is whole or not there at all; file system errors
locks      who may work at the same time
verify     does every shard hash to its name
gc         what nobody needs, removed
usage      what the variants cost together and alone
documents  headers of JSON documents
state      quota, pins, what was dropped, when variants were used
sources    what shards were made from
keeping    what to drop to keep a quota: a pure choice
fetching   shards from elsewhere, taken only if they are what they are named for
store      ``Store``, which joins them
"""
