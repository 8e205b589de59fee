"""The account of what is kept alive, against one kept as a list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lamella.deploy.keeping import Keeping

NAMES = st.sampled_from("abcdef")
SIZES = st.integers(0, 50)
STEPS = st.lists(st.tuples(st.sampled_from(["use", "grow", "drop"]), NAMES, SIZES), max_size=40)


def replay(steps: list[tuple[str, str, int]]) -> tuple[Keeping, list[tuple[str, int]]]:
    """The account after these steps, and what it should be: names and sizes, the one used longest ago first."""
    keeping, right = Keeping(100), list[tuple[str, int]]()
    for verb, name, size in steps:
        before = dict(right).get(name, 0)
        right = [each for each in right if each[0] != name]
        if verb == "drop":
            keeping.drop(name)
        elif verb == "use":
            keeping.use(name)
            right.append((name, before))
        else:
            keeping.use(name, size)
            right.append((name, size))
    return keeping, right


@given(STEPS)
def test_it_knows_who_is_alive_in_the_order_of_last_use_and_what_all_hold(steps: list[tuple[str, str, int]]) -> None:
    keeping, right = replay(steps)
    assert list(keeping) == [name for name, _ in right]
    assert keeping.used_mb == sum(size for _, size in right)
    assert all((name in keeping) == (name in dict(right)) for name in "abcdef")


@given(STEPS, SIZES, NAMES)
def test_who_leaves_is_as_few_as_make_room_those_used_longest_ago(
    steps: list[tuple[str, str, int]], need: int, keep: str
) -> None:
    keeping, right = replay(steps)
    leaving = keeping.leaving(need, keep)
    others = [name for name, _ in right if name != keep]
    assert leaving == others[: len(leaving)]

    def fits(gone: list[str]) -> bool:
        return sum(size for name, size in right if name not in gone) + need <= keeping.budget_mb

    assert fits(leaving) or leaving == others
    assert not leaving or not fits(leaving[:-1])
    assert list(keeping) == [name for name, _ in right], "asking changes nothing"


@given(STEPS, SIZES, st.frozensets(NAMES))
def test_some_leave_after_all_others(steps: list[tuple[str, str, int]], need: int, last: frozenset[str]) -> None:
    keeping, right = replay(steps)
    order = [n for n, _ in right if n not in last] + [n for n, _ in right if n in last]
    leaving = keeping.leaving(need, last=last)
    assert leaving == order[: len(leaving)]
