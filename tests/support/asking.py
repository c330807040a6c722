"""Requests of many rows, made and looked at by tests."""

from datetime import UTC, datetime

from sqlalchemy import text

from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.requests import queue
from batch_jobs.requests import submit as requests
from batch_jobs.requests.submit import Row, Submission
from tests.support.attempts import ask


def submit(settings, model, rows, **options):
    """Ask for rows, `(entity, features)` each; the number of the request."""
    submission = Submission(model, [Row(*row) for row in rows], **options)
    return requests.submit(Warehouse(settings.warehouse), submission).request_id


def state(settings, request_id):
    """Its state, and how many rows were sent, scored and rejected."""
    sql = "SELECT state, rows_read, rows_scored, rows_rejected FROM requests WHERE request_id = :id"
    return ask(Warehouse(settings.warehouse), sql, id=request_id)[0]


def results(settings, request_id):
    """`row_number`, `entity_id`, `score` of its predictions, in order."""
    sql = """
        SELECT row_number, entity_id, score FROM request_results
        WHERE request_id = :id ORDER BY row_number"""
    return ask(Warehouse(settings.warehouse), sql, id=request_id)


def rejects(settings, request_id):
    """`{row_number: reason}` of its rejected rows."""
    sql = "SELECT row_number, reason FROM request_rejects WHERE request_id = :id"
    return dict(ask(Warehouse(settings.warehouse), sql, id=request_id))


def pass_the_lease(settings):
    """Let every attempt have been silent for longer than it may be."""
    moment = stored_time(datetime.now(UTC) - 2 * queue.LEASE)
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(text("UPDATE requests SET claimed_at = :moment"), {"moment": moment})
