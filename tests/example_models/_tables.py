"""The source tables of the example models: an order every ten minutes, and fifty customers."""

import random
from datetime import timedelta

from sqlalchemy import text

from batch_jobs.database.transactions import stored_time

STEP = timedelta(minutes=10)


def make_tables(connection, start, end):
    """Fill `orders` with one order for each ten minutes of `[start, end)`, and `customers`.

    An order settles three hours after it was placed; the dearer it is, the likelier it comes back.
    """
    chance = random.Random(0)
    connection.execute(
        text("""
        CREATE TABLE orders (entity_id TEXT, placed_at TEXT, amount REAL, country TEXT,
          returned INTEGER, settled_at TEXT)""")
    )
    connection.execute(text("CREATE TABLE customers (entity_id TEXT, visits REAL, spent REAL)"))
    orders = []
    for place in range((end - start) // STEP):
        placed, amount = start + place * STEP, chance.uniform(0, 100)
        orders.append(
            {
                "id": f"order-{place:05}",
                "placed": stored_time(placed),
                "amount": amount,
                "country": chance.choice(["kr", "us", None]),
                "returned": int(chance.uniform(0, 100) < amount),
                "settled": stored_time(placed + timedelta(hours=3)),
            }
        )
    connection.execute(
        text("INSERT INTO orders VALUES (:id, :placed, :amount, :country, :returned, :settled)"),
        orders,
    )
    connection.execute(
        text("INSERT INTO customers VALUES (:id, :visits, :spent)"),
        [{"id": f"customer-{n}", "visits": n, "spent": 2 * n + chance.random()} for n in range(50)],
    )
