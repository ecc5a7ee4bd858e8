"""Durable runs: a supervisor per machine, compute processes that hold the models, and the client that submits."""
