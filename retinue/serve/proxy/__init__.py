"""The doors to the outside: HTTP and gRPC in, direct calls to replicas out."""
