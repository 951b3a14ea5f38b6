"""Several machines as one: certificates, nodes, tunnels between them, and what coordinator and nodes tell each other.

A *cluster* is a certificate authority in a folder of the coordinator.  Nodes listen, and the coordinator alone
dials; both sides prove who they are (mutual TLS).  llama.cpp's RPC protocol, which proves nothing, goes through these
connections alone (docs/cluster.md).
"""
