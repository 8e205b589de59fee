"""`lamella demo`: the main job."""


def demo() -> None:
    """Placeholder."""
