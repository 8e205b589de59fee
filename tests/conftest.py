"""What all tests share: where built models are kept, where recorded traces lie, how Hypothesis behaves; and the net
that ends a run which would not end by itself (`tests.leftovers`)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.leftovers import Leftovers

ROOT = Path(__file__).resolve().parents[1]

# Set at import, so that test modules and the processes they start never touch the user's own cache. It is kept between
# runs: a large model is built once.
os.environ.setdefault("LAMELLA_CACHE", str(ROOT / ".cache" / "tests"))

# A deadline would make every property a timed test. CI looks at the same examples each time.
settings.register_profile(
    "lamella", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lamella")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Leftovers(), "leftovers")


@pytest.fixture(scope="session", autouse=True)
def short_profiles() -> Iterator[None]:
    """Profiles are as short as can be, but for `make nightly`: what a user has measured took a third of the suite.

    Those that nobody gave a budget, as behind `lamella plan`, have the least rounds, as hops and single products do.
    Shards come in pairs: each part of a measurement of four or eight is a process. Tests that need more ask for it.
    """
    if "LAMELLA_EXAMPLES" in os.environ:
        yield
        return
    from lamella.profile import channels, hops, measure, products, shards  # not before it is known that a test runs

    with pytest.MonkeyPatch.context() as patch:
        for function, name, value in ((measure.measure, "budget_s", 0.1), (hops.in_turns, "turns", 6)):
            defaults = function.__kwdefaults__
            assert defaults
            assert name in defaults
            patch.setitem(defaults, name, value)
        patch.setattr(channels, "TURNS", 4)
        patch.setattr(products, "BUDGET_MS", 100.0)
        patch.setattr(products, "SESSIONS", 1)
        patch.setattr(shards, "FAN_OUTS", (2,))
        yield


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The directory LAMELLA_CACHE names (default: `.cache/tests` in the repository), kept between runs."""
    path = Path(os.environ["LAMELLA_CACHE"])
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def traces_dir() -> Path:
    """The directory of recorded request and network traces; the test is skipped where there is none."""
    given = os.environ.get("LAMELLA_TRACES")
    path = Path(given) if given else ROOT.parent / "shared" / "data" / "traces"
    if path.is_dir():
        return path
    if given:
        pytest.fail(f"LAMELLA_TRACES={given} is not a directory")
    pytest.skip("no traces here: set LAMELLA_TRACES to the directory that holds them")
