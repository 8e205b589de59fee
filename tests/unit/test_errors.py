import pytest

from lamella import errors
from lamella.errors import InfeasiblePlan, InstanceLost, LamellaError, OutOfMemory


def all_errors() -> list[type[LamellaError]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, LamellaError)]


def test_an_error_says_what_where_and_the_next_command() -> None:
    error = InfeasiblePlan(
        "needs 312 MB, limit 256 MB", where="slice 2", try_="lamella plan resnet50.onnx --memory-mb 320"
    )
    assert str(error) == (
        "needs 312 MB, limit 256 MB\n  where: slice 2\n  try:   lamella plan resnet50.onnx --memory-mb 320"
    )


def test_what_an_error_does_not_know_it_leaves_out() -> None:
    assert str(LamellaError("disk full")) == "disk full"


def test_a_finer_cause_is_caught_by_the_broader_one() -> None:
    with pytest.raises(InstanceLost, match="killed at 256 MB"):
        raise OutOfMemory("killed at 256 MB")


def test_codes_are_unique_so_that_scripts_can_tell_causes_apart() -> None:
    codes = [error.code for error in all_errors()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", [e for e in all_errors() if e is not LamellaError], ids=lambda e: e.__name__)
def test_a_finer_code_continues_the_broader_one(error: type[LamellaError]) -> None:
    (parent,) = error.__bases__
    assert issubclass(parent, LamellaError)
    assert parent is LamellaError or error.code.startswith(parent.code + ".")


def test_exit_codes_are_the_documented_ones() -> None:
    assert {error.exit_code for error in all_errors()} <= {1, 2, 3, 4}
    assert errors.ConfigError.exit_code == 2
    assert errors.InfeasiblePlan.exit_code == 3
    assert errors.PlatformLimit.exit_code == 4
