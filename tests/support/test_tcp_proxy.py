"""The bad network of the tests is bad in just the way that it was asked to be."""

import socket
import time
from select import select

import adbc_driver_postgresql.dbapi
import psycopg
import pytest
from sqlalchemy import create_engine, exc, text

from tests.support.tcp_proxy import TcpProxy

COMMIT = b"COMMIT\0"
CUT_CLIENT = "reset by peer|closed the connection|connection is closed"


@pytest.fixture
def proxy(postgres):
    """The way to the server."""
    with TcpProxy("127.0.0.1", postgres.port) as made:
        yield made


@pytest.fixture
def database(postgres, postgres_url):
    """A database with an empty table `kept`."""
    name = postgres_url.rpartition("/")[2]
    postgres.execute("CREATE TABLE kept (number integer)", name)
    return name


@pytest.fixture
def client(postgres, proxy, database):
    """A connection through the proxy that commits when it is told to."""
    with postgres.connect(database, port=proxy.port, autocommit=False) as connection:
        yield connection
        connection.close()


def kept(postgres, database):
    """What is in the table."""
    return [number for (number,) in postgres.execute("SELECT number FROM kept", database)]


def commit_each(client, *numbers):
    """Add the numbers to the table, in one transaction each."""
    for number in numbers:
        client.execute("INSERT INTO kept VALUES (%s)", (number,))
        client.commit()


def hear(port):
    """Connect with no driver, and listen."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as bare:
        return bare.recv(1)


def sessions(postgres, database):
    """The states of the sessions that the server has with clients of a database."""
    query = f"SELECT state FROM pg_stat_activity WHERE datname = '{database}'"
    return [state for (state,) in postgres.execute(query)]


def ask_for(client, size):
    """Send a query for a text of that many bytes, and do not wait."""
    client.pgconn.send_query(f"SELECT repeat('x', {size})".encode())


def has_answer(client, seconds):
    """Whether the whole answer arrives in that time."""
    deadline = time.monotonic() + seconds
    while client.pgconn.is_busy():
        left = deadline - time.monotonic()
        if left <= 0 or not select([client.pgconn.socket], [], [], left)[0]:
            return False
        client.pgconn.consume_input()
    return True


def answer_size(client):
    """The size of the text that was asked for."""
    return len(client.pgconn.get_result().get_value(0, 0))


def test_it_passes_everything(proxy, client):
    """What goes through arrives whole, both ways, and the connection is counted."""
    with client.cursor() as cursor:
        with cursor.copy("COPY kept FROM STDIN") as copy:
            for number in range(100_000):
                copy.write_row((number,))
        found = cursor.execute("SELECT number FROM kept ORDER BY number").fetchall()
    assert found == [(number,) for number in range(100_000)]
    assert proxy.connections == 1


def test_latency_holds_bytes_back(proxy, client):
    """Nothing arrives before its time; what was held back arrives when latency ends."""
    proxy.latency(600_000)
    ask_for(client, 1000)
    early = has_answer(client, 0.2)
    proxy.pass_all()
    assert (early, has_answer(client, 30), answer_size(client)) == (False, True, 1000)


def test_latency_is_only_late(proxy, client):
    """With some latency everything works as it does without."""
    proxy.latency(5)
    assert client.execute("SELECT 1").fetchone() == (1,)


def test_bandwidth_lets_little_through(proxy, client):
    """A narrow way begins to answer, and answers whole when it is widened."""
    proxy.bandwidth(1000)
    ask_for(client, 100_000)
    begun = bool(select([client.pgconn.socket], [], [], 30)[0])
    early = has_answer(client, 0.2)
    proxy.pass_all()
    assert (begun, early, has_answer(client, 30)) == (True, False, True)
    assert answer_size(client) == 100_000


def test_the_slicer_cuts_in_small_pieces(proxy, client):
    """Bytes come in pieces of the size that was asked for, and none is lost."""
    proxy.slicer(7)
    before = proxy.writes
    found = client.execute("SELECT repeat('x', 10000)").fetchone()[0]
    assert found == "x" * 10_000
    assert proxy.writes - before > 10_000 / 7


def test_reset_peer_resets_who_is_there_and_who_comes(postgres, proxy, client, database):
    """Live and new connections get RST, until everything passes again."""
    client.execute("INSERT INTO kept VALUES (1)")
    proxy.reset_peer()
    with pytest.raises(psycopg.OperationalError, match=CUT_CLIENT):
        client.execute("SELECT 1")
    with pytest.raises(ConnectionResetError):
        hear(proxy.port)
    proxy.pass_all()
    postgres.connect(database, port=proxy.port).close()
    assert kept(postgres, database) == []


def test_refuse_closes_the_door(postgres, proxy, client, database):
    """Live connections are reset and nobody listens, until everything passes again."""
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match=CUT_CLIENT):
        client.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        postgres.connect(database, port=proxy.port)
    proxy.pass_all()
    with postgres.connect(database, port=proxy.port) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_black_hole_tells_nobody(postgres, proxy, client, database):
    """Neither side learns that the other is out of reach: the server keeps the session."""
    client.execute("INSERT INTO kept VALUES (1)")
    proxy.blackhole()
    ask_for(client, 1)
    assert proxy.swallowed.wait(30)
    assert has_answer(client, 0.2) is False
    assert sessions(postgres, database) == ["idle in transaction"]
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        postgres.connect(database, port=proxy.port, connect_timeout=2)


def test_a_black_hole_gives_nothing_back(postgres, proxy, client, database):
    """When it ends, connections that lost bytes are reset, and the others go on."""
    with postgres.connect(database, port=proxy.port) as other:
        proxy.blackhole()
        ask_for(client, 1)
        assert proxy.swallowed.wait(30)
        proxy.pass_all()
        assert other.execute("SELECT 1").fetchone() == (1,)
    assert client.pgconn.get_result().status == psycopg.pq.ExecStatus.FATAL_ERROR


def test_a_commit_is_lost_on_its_way(postgres, proxy, client, database):
    """The client does not know, and the server has rolled back and ended the session."""
    client.execute("INSERT INTO kept VALUES (1)")
    proxy.drop_before(COMMIT)
    with pytest.raises(psycopg.OperationalError, match=CUT_CLIENT):
        client.commit()
    assert proxy.cut.wait(30)
    assert (kept(postgres, database), sessions(postgres, database)) == ([], [])


def test_the_answer_to_a_commit_is_lost(postgres, proxy, client, database):
    """The client does not know, and the server has committed and ended the session."""
    client.execute("INSERT INTO kept VALUES (1)")
    proxy.drop_after(COMMIT)
    with pytest.raises(psycopg.OperationalError, match=CUT_CLIENT):
        client.commit()
    assert proxy.cut.wait(30)
    assert (kept(postgres, database), sessions(postgres, database)) == ([1], [])
    assert proxy.answer == "COMMIT"


@pytest.mark.parametrize(("way", "expected"), [("before", [1, 2]), ("after", [1, 2, 3])])
def test_the_commit_of_that_number_is_cut(postgres, proxy, client, database, way, expected):
    """Those before it pass, and who connects afterwards is not cut again."""
    getattr(proxy, f"drop_{way}")(COMMIT, 3)
    with pytest.raises(psycopg.OperationalError):
        commit_each(client, 1, 2, 3)
    with postgres.connect(database, port=proxy.port, autocommit=False) as connection:
        connection.execute("DELETE FROM kept WHERE number = 1")
    assert kept(postgres, database) == expected[1:]


def test_on_commit_is_no_commit(postgres, proxy, client, database):
    """The zero byte that ends SQL tells a COMMIT from a table that is dropped on it."""
    proxy.drop_before(COMMIT)
    client.execute("CREATE TEMPORARY TABLE passing (number integer) ON COMMIT DROP")
    assert not proxy.cut.is_set()


@pytest.mark.parametrize("prepare", [False, True])
def test_a_statement_with_values_is_found(postgres, proxy, client, database, prepare):
    """A statement is found when it is run, also if it was prepared long before."""
    insert = "INSERT INTO kept VALUES (%s)"
    client.execute(insert, (1,), prepare=prepare)
    client.commit()
    proxy.drop_after(b"INSERT INTO kept")
    with pytest.raises(psycopg.OperationalError):
        client.execute(insert, (2,), prepare=prepare)
    assert proxy.cut.wait(30)
    assert (kept(postgres, database), proxy.answer) == ([1], "INSERT 0 1")


def test_the_answer_to_a_copy_is_lost(postgres, proxy, database):
    """A COPY gets its rows, and only its last word is lost."""
    proxy.drop_after(b"COPY")
    with postgres.connect(database, port=proxy.port) as client:
        with (
            pytest.raises(psycopg.OperationalError),
            client.cursor() as cursor,
            cursor.copy("COPY kept FROM STDIN") as copy,
        ):
            copy.write_row((1,))
        client.close()
    assert proxy.cut.wait(30)
    assert (kept(postgres, database), proxy.answer) == ([1], "COPY 1")


@pytest.mark.parametrize(("way", "expected"), [("before", []), ("after", [1])])
def test_a_commit_of_sqlalchemy_is_cut(postgres, proxy, database, way, expected):
    """SQLAlchemy's COMMIT is one that is found."""
    engine = create_engine(postgres.url(database, proxy.port))
    getattr(proxy, f"drop_{way}")(COMMIT)
    with pytest.raises(exc.OperationalError), engine.begin() as connection:
        connection.execute(text("INSERT INTO kept VALUES (1)"))
    engine.dispose()
    assert proxy.cut.wait(30)
    assert kept(postgres, database) == expected


@pytest.mark.parametrize(("way", "expected"), [("before", []), ("after", [1])])
def test_a_commit_of_adbc_is_cut(postgres, proxy, database, way, expected):
    """ADBC's COMMIT is one that is found."""
    url = postgres.url(database, proxy.port).replace("+psycopg", "")
    with adbc_driver_postgresql.dbapi.connect(url) as connection:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO kept VALUES (1)")
        getattr(proxy, f"drop_{way}")(b"COMMIT")
        with pytest.raises(adbc_driver_postgresql.dbapi.Error):
            connection.commit()
    assert proxy.cut.wait(30)
    assert kept(postgres, database) == expected


def test_a_closed_proxy_is_gone(postgres):
    """It closes with connections open, as often as it is asked to."""
    with TcpProxy("127.0.0.1", postgres.port) as proxy:
        client = postgres.connect(port=proxy.port)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        postgres.connect(port=proxy.port)
    with pytest.raises(psycopg.OperationalError, match=CUT_CLIENT):
        client.execute("SELECT 1")
    client.close()
