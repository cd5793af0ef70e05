"""KV blocks of prefixes on a disk, where other processes and later ones find them."""
