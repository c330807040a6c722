"""Which model store a warehouse belongs to: two deployments on one schema would harm each other.

Each would promote versions whose artifacts the other one does not have. A store is known by a file
in it and not by its address, so that it may be mounted elsewhere, or move with all its files.
"""

from __future__ import annotations

import socket
import uuid

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError, StoreUnavailableError
from batch_jobs.redaction import first_line
from batch_jobs.registry.store import ModelStore

IDENTITY = ".deployment"
MOST_BYTES = 200


def claim(warehouse: Warehouse, store: ModelStore, *, moved: bool = False) -> None:
    """Let a warehouse belong to a store, if it belongs to none.

    Args:
        warehouse: of this release.
        store: that can be written.
        moved: let it belong to this store, whichever it belonged to before.

    Raises:
        ConfigurationError: it belongs to another store.
    """
    store_id = id_of(store)
    if store_id is None:
        if not moved:
            _refuse_another(warehouse, None, store)
        store.files.put(IDENTITY, f"{uuid.uuid4().hex}\n".encode())
        store_id = str(id_of(store))  # of two at once, one has written it
    _record(warehouse, store_id, str(store), moved=moved)
    _refuse_another(warehouse, store_id, store)


def require(warehouse: Warehouse, store: ModelStore) -> None:
    """Find out before something is written to a store whether the warehouse belongs to it.

    Raises:
        ConfigurationError: it belongs to another store.
    """
    _refuse_another(warehouse, id_of(store), store)


def id_of(store: ModelStore) -> str | None:
    """What tells a store from any other one, wherever it is; None if nobody has said.

    Raises:
        StoreUnavailableError: it does not answer.
    """
    try:
        return store.files.read(IDENTITY, most=MOST_BYTES).decode("ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreUnavailableError(
            f"{store.files.tell(IDENTITY)} cannot be read: {first_line(error)}"
        ) from error


@repeatable
def _record(warehouse: Warehouse, store_id: str, address: str, *, moved: bool) -> None:
    change = (
        "UPDATE SET store_id = excluded.store_id, address = excluded.address,"
        " host = excluded.host, recorded_at = excluded.recorded_at"
    )
    with warehouse.write() as connection:
        connection.execute(
            text(f"""
                INSERT INTO model_stores (number, store_id, address, host, recorded_at)
                VALUES (1, :store_id, :address, :host, :now)
                ON CONFLICT (number) DO {change if moved else "NOTHING"}"""),  # noqa: S608
            {
                "store_id": store_id,
                "address": address,
                "host": socket.gethostname(),
                "now": stored_time(clock.now()),
            },
        )


@repeatable
def _refuse_another(warehouse: Warehouse, store_id: str | None, store: ModelStore) -> None:
    with warehouse.read() as connection:
        known = connection.execute(text("SELECT * FROM model_stores")).first()
    if known is None or known.store_id == store_id:
        return
    raise ConfigurationError(
        f"the warehouse {warehouse} belongs to the model store {known.address} of {known.host}, "
        f"and {store} is another one: two deployments on one schema would promote versions that "
        f"the other cannot load; {warehouse.database.elsewhere}; or, if that store has moved here, "
        f"run `batch-jobs init --store-moved`"
    )
