"""`./run test --fast` knows every room of the tests."""

from tests.conftest import FAST, ROOT, SLOW, SLOW_FILES, is_fast


def test_each_room_is_either_fast_or_slow():
    """So that a new room is left out, or not, on purpose."""
    tests = ROOT / "tests"
    rooms = {path.parent.name for path in tests.glob("*/test_*.py")}
    assert (rooms - FAST - SLOW, FAST & SLOW, FAST - rooms) == (set(), set(), set())
    assert [name for name in SLOW_FILES if not (tests / name).is_file()] == []


def test_the_fast_ones_need_no_server(request):
    """Nothing of PostgreSQL, S3 or Airflow's own processes, among all that were collected."""
    fast = [item for item in request.session.items if is_fast(item)]
    assert request.node in fast
    assert [item.nodeid for item in fast if "postgresql" in item.nodeid] == []
    assert [item.nodeid for item in fast if "/airflow/" in item.nodeid] == []
    assert [item.nodeid for item in fast if item.get_closest_marker("slow")] == []
