"""How tensors and small control messages travel between processes of one machine."""
