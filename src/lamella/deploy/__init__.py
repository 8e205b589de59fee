"""Adapters that run a plan somewhere. `local` is the reference: limited processes on this machine."""
