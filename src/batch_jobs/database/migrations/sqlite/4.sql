-- The warehouse on SQLite, from schema version 3 to 4: requests of many rows, answered later.

-- requesters: one row a request. It waits, an attempt claims it and scores its rows, and it is done
-- or has failed; prune retires it before it removes its rows. A state moves only by whoever answers.
CREATE TABLE requests (
  request_id INTEGER PRIMARY KEY CHECK (request_id BETWEEN 1 AND 9007199254740991),
  model TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting'
    CHECK (state IN ('waiting', 'scoring', 'done', 'failed', 'retired')),
  client TEXT NOT NULL,  -- who asked: the hash of a key, or nothing
  idempotency_key TEXT,
  request_sha256 TEXT NOT NULL,
  created_at TEXT NOT NULL,
  rows_read INTEGER NOT NULL CHECK (rows_read >= 0),  -- how many were sent
  rows_scored INTEGER NOT NULL DEFAULT 0,
  rows_rejected INTEGER NOT NULL DEFAULT 0,
  rows_skipped INTEGER NOT NULL DEFAULT 0,
  model_version TEXT,  -- the champion when it was claimed first
  token TEXT,  -- the attempt that works on it; another one's changes are refused
  claimed_at TEXT,  -- when that attempt claimed it or last stored a chunk
  attempts INTEGER NOT NULL DEFAULT 0,  -- claims whose attempts were not heard of again, and this
  finished_at TEXT,
  error TEXT,
  FOREIGN KEY (model, model_version) REFERENCES model_versions (model, version),
  CHECK (rows_scored + rows_rejected + rows_skipped <= rows_read),
  CHECK (state <> 'scoring' OR (token IS NOT NULL AND claimed_at IS NOT NULL)),
  CHECK (state NOT IN ('done', 'failed', 'retired') OR finished_at IS NOT NULL),
  CHECK (state <> 'failed' OR error IS NOT NULL),
  CHECK (state <> 'done' OR (model_version IS NOT NULL
                             AND rows_read = rows_scored + rows_rejected + rows_skipped))
) STRICT;
CREATE UNIQUE INDEX one_request_a_key ON requests (client, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX unanswered_requests ON requests (model, created_at)
  WHERE state IN ('waiting', 'scoring');
CREATE INDEX finished_requests ON requests (model, finished_at) WHERE finished_at IS NOT NULL;

-- requesters: what was sent, in the order in which it was; an entity may come more than once.
CREATE TABLE request_rows (
  request_id INTEGER NOT NULL REFERENCES requests,
  row_number INTEGER NOT NULL CHECK (row_number >= 1),
  entity_id TEXT,
  features TEXT NOT NULL CHECK (json_valid(features)),
  PRIMARY KEY (request_id, row_number)
) WITHOUT ROWID, STRICT;

-- requesters: the predictions, to be read once the request is done.
CREATE TABLE request_results (
  request_id INTEGER NOT NULL REFERENCES requests,
  row_number INTEGER NOT NULL,
  entity_id TEXT,
  score REAL NOT NULL CHECK (abs(score) <= 1.7976931348623157e308),
  label TEXT,
  PRIMARY KEY (request_id, row_number)
) WITHOUT ROWID, STRICT;

-- requesters: the rows that have no prediction, and why; to be read once the request is done.
CREATE TABLE request_rejects (
  request_id INTEGER NOT NULL REFERENCES requests,
  row_number INTEGER NOT NULL,
  entity_id TEXT,
  reason TEXT NOT NULL,
  PRIMARY KEY (request_id, row_number)
) WITHOUT ROWID, STRICT;
