"""A zygote whose workers may open functions from the store: `python -m lamella.store.zygote`, as of the runtime's.

Each of them asks the daemon for itself, as the user it has become, and holds its own lease.
"""

from lamella.runtime import zygote
from lamella.store.opening import open_shared

if __name__ == "__main__":
    zygote.main(open_shared)
