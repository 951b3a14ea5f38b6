"""The store: one model at many precisions, its layers shared, as plain files (docs/store-format.md).

layout     names and places inside a store
files      writing that is whole or not there at all; file system errors
locks      who may work at the same time
leases     what somebody relies on, and gc leaves alone; claims: who makes a shard
founding   which model a store is of, and where one may be made
variants   a variant there whole or not at all
recipes    which shard came out of which work
verify     does every shard hash to its name
gc         what nobody needs, removed
leftovers  what interrupted work left
usage      what the variants cost together and alone
documents  headers of JSON documents
state      quota, pins, what was dropped, when variants were used
sources    what shards were made from; origins: where they were pulled from
keeping    what to drop to keep a quota: a pure choice
fetching   shards from elsewhere, taken only if they are what they are named for; parts: pieces of one
store      ``Store``, which joins them
"""
