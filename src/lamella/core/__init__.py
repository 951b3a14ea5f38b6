"""The vocabulary every other part speaks: units, precisions, model specifications, artifacts, errors.

Nothing in here opens a file or loads a library, and nothing in here imports another part of Lamella.
"""
