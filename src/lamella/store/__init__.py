"""The store: one model at many precisions, its layers shared, as plain files (docs/store-format.md).

layout     names and places inside a store
files      writing that is whole or not there at all; file system errors
locks      the store's lock, held for moments
leases     what somebody relies on and gc leaves alone
claims     who makes a shard, so that nobody makes it twice
verify     does every shard hash to its name
gc         what nobody needs, removed
leftovers  what interrupted work left
usage      what the variants cost together and alone
store      ``Store``, which joins them
"""
