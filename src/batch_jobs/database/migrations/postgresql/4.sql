-- From schema version 3 to 4: requests of many rows, answered later.

-- requesters: one row a request. It waits, an attempt claims it and scores its rows, and it is done
-- or has failed; prune retires it before it removes its rows. A state moves only by whoever answers.
CREATE TABLE requests (
  request_id bigint PRIMARY KEY CHECK (request_id BETWEEN 1 AND 9007199254740991),
  model text COLLATE "C" NOT NULL,
  state text NOT NULL DEFAULT 'waiting'
    CHECK (state IN ('waiting', 'scoring', 'done', 'failed', 'retired')),
  client text COLLATE "C" NOT NULL,  -- who asked: the hash of a key, or nothing
  idempotency_key text COLLATE "C",
  request_sha256 text NOT NULL,
  created_at timestamptz NOT NULL,
  rows_read bigint NOT NULL CHECK (rows_read >= 0),  -- how many were sent
  rows_scored bigint NOT NULL DEFAULT 0,
  rows_rejected bigint NOT NULL DEFAULT 0,
  rows_skipped bigint NOT NULL DEFAULT 0,
  model_version text COLLATE "C",  -- the champion when it was claimed first
  token text COLLATE "C",  -- the attempt that works on it; another one's changes are refused
  claimed_at timestamptz,  -- when that attempt claimed it or last stored a chunk
  attempts integer NOT NULL DEFAULT 0,  -- claims whose attempts were not heard of again, and this
  finished_at timestamptz,
  error text,
  FOREIGN KEY (model, model_version) REFERENCES model_versions (model, version),
  CHECK (rows_scored + rows_rejected + rows_skipped <= rows_read),
  CHECK (state <> 'scoring' OR (token IS NOT NULL AND claimed_at IS NOT NULL)),
  CHECK (state NOT IN ('done', 'failed', 'retired') OR finished_at IS NOT NULL),
  CHECK (state <> 'failed' OR error IS NOT NULL),
  CHECK (state <> 'done' OR (model_version IS NOT NULL
                             AND rows_read = rows_scored + rows_rejected + rows_skipped))
);
CREATE UNIQUE INDEX one_request_a_key ON requests (client, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX unanswered_requests ON requests (model, created_at)
  WHERE state IN ('waiting', 'scoring');
CREATE INDEX finished_requests ON requests (model, finished_at) WHERE finished_at IS NOT NULL;

-- requesters: what was sent, in the order in which it was; an entity may come more than once.
CREATE TABLE request_rows (
  request_id bigint NOT NULL REFERENCES requests,
  row_number bigint NOT NULL CHECK (row_number >= 1),
  entity_id text COLLATE "C",
  features json NOT NULL,
  PRIMARY KEY (request_id, row_number)
);

-- requesters: the predictions, to be read once the request is done.
CREATE TABLE request_results (
  request_id bigint NOT NULL REFERENCES requests,
  row_number bigint NOT NULL,
  entity_id text COLLATE "C",
  score double precision NOT NULL CHECK (abs(score) <= 1.7976931348623157e308),
  label text COLLATE "C",
  PRIMARY KEY (request_id, row_number)
);

-- requesters: the rows that have no prediction, and why; to be read once the request is done.
CREATE TABLE request_rejects (
  request_id bigint NOT NULL REFERENCES requests,
  row_number bigint NOT NULL,
  entity_id text COLLATE "C",
  reason text NOT NULL,
  PRIMARY KEY (request_id, row_number)
);
