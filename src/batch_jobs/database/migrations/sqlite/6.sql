-- The warehouse on SQLite, schema version 6, which is the first that was released.
-- Times are UTC text as Python's datetime.isoformat() writes it (2026-11-22T15:00:00+00:00), which sorts as time.
-- Views and tables marked "readers" are the contract; everything else may change in any release.

CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT;

-- readers: every trained version; the sha256 is checked on the very bytes that are loaded.
CREATE TABLE model_versions (
  model TEXT NOT NULL,
  version TEXT NOT NULL,
  as_of TEXT NOT NULL,
  created_at TEXT NOT NULL,
  sha256 TEXT NOT NULL CHECK (length(sha256) = 64),
  size_bytes INTEGER NOT NULL,
  manifest TEXT NOT NULL CHECK (json_valid(manifest)),
  metrics TEXT NOT NULL CHECK (json_valid(metrics)),
  gate TEXT NOT NULL CHECK (json_valid(gate)),
  artifact_removed_at TEXT,  -- by retention: nobody loads it from then on
  artifact_gone INTEGER NOT NULL DEFAULT 0
    CHECK (artifact_gone IN (0, 1)),  -- whether the store has nothing left of it
  PRIMARY KEY (model, version)
) STRICT;

-- readers: append-only; the newest row of a model names its champion.
CREATE TABLE promotions (
  promotion_id INTEGER PRIMARY KEY AUTOINCREMENT,
  model TEXT NOT NULL,
  version TEXT NOT NULL,
  previous_version TEXT,
  action TEXT NOT NULL CHECK (action IN ('promote', 'rollback')),
  actor TEXT NOT NULL,
  reason TEXT NOT NULL,
  metrics TEXT NOT NULL CHECK (json_valid(metrics)),
  promoted_at TEXT NOT NULL,
  FOREIGN KEY (model, version) REFERENCES model_versions (model, version)
) STRICT;
CREATE INDEX promotions_of_model ON promotions (model, promotion_id);
CREATE TRIGGER promotions_keep_update BEFORE UPDATE ON promotions
BEGIN SELECT RAISE(ABORT, 'promotions is append-only'); END;
CREATE TRIGGER promotions_keep_delete BEFORE DELETE ON promotions
BEGIN SELECT RAISE(ABORT, 'promotions is append-only'); END;

-- The highest attempt token that has claimed an interval; lower ones may change nothing.
CREATE TABLE fences (
  model TEXT NOT NULL,
  interval_start TEXT NOT NULL,
  interval_end TEXT NOT NULL,
  token TEXT NOT NULL,
  claimed_at TEXT NOT NULL,
  PRIMARY KEY (model, interval_start, interval_end)
) WITHOUT ROWID, STRICT;

-- readers: the ledger, one row an attempt.
CREATE TABLE prediction_runs (
  run_id INTEGER PRIMARY KEY AUTOINCREMENT,
  model TEXT NOT NULL,
  interval_start TEXT NOT NULL,
  interval_end TEXT NOT NULL CHECK (interval_end > interval_start),
  state TEXT NOT NULL CHECK (state IN ('staging', 'published', 'superseded', 'retired', 'failed')),
  model_version TEXT NOT NULL,
  rows_read INTEGER,
  rows_scored INTEGER,
  rows_rejected INTEGER,
  rows_skipped INTEGER,
  published_at TEXT,
  superseded_at TEXT,
  error TEXT,
  mode TEXT NOT NULL CHECK (mode IN ('merge', 'replace')),
  token TEXT NOT NULL,
  claimed_at TEXT NOT NULL,  -- when its attempt claimed the interval or was last heard of
  hindsight INTEGER NOT NULL DEFAULT 0 CHECK (hindsight IN (0, 1)),
  rows_table TEXT NOT NULL DEFAULT 'predictions',
  accepted TEXT,  -- why somebody let it pass the circuit breaker
  refused TEXT,  -- what was asked when its rows were refused, as a digest: not asked again
  UNIQUE (model, interval_start, interval_end, token),
  FOREIGN KEY (model, model_version) REFERENCES model_versions (model, version),
  CHECK (state NOT IN ('published', 'superseded', 'retired')
         OR (published_at IS NOT NULL AND rows_read = rows_scored + rows_rejected + rows_skipped))
) STRICT;
CREATE UNIQUE INDEX one_published_run ON prediction_runs (model, interval_start, interval_end)
  WHERE state = 'published';
CREATE INDEX published_spans ON prediction_runs (model, interval_start, interval_end, state);
-- Each publication asks for the newest one before it, and for the runs that end after the watermark.
CREATE INDEX published_in_order ON prediction_runs (model, published_at)
  WHERE published_at IS NOT NULL;
CREATE INDEX published_ends ON prediction_runs (model, interval_end);

-- The key range that one scoring task reads, and what it found there.
CREATE TABLE run_parts (
  run_id INTEGER NOT NULL REFERENCES prediction_runs (run_id),
  part INTEGER NOT NULL,
  key_from TEXT,
  key_to TEXT,
  token TEXT,
  staged INTEGER NOT NULL DEFAULT 0 CHECK (staged IN (0, 1)),
  rows_read INTEGER NOT NULL DEFAULT 0,
  rows_scored INTEGER NOT NULL DEFAULT 0,
  rows_rejected INTEGER NOT NULL DEFAULT 0,
  rows_skipped INTEGER NOT NULL DEFAULT 0,
  chunks INTEGER NOT NULL DEFAULT 0,
  score_min REAL,
  score_max REAL,
  error TEXT,  -- why it has failed its run: the next try of the part makes that good
  PRIMARY KEY (run_id, part)
) WITHOUT ROWID, STRICT;

-- Rows of every run; invisible until a view reaches them through a published run.
CREATE TABLE predictions (
  run_id INTEGER NOT NULL,
  entity_id TEXT NOT NULL CHECK (length(entity_id) BETWEEN 1 AND 200),
  part INTEGER NOT NULL,
  score REAL NOT NULL CHECK (abs(score) <= 1.7976931348623157e308),
  label TEXT,
  PRIMARY KEY (run_id, entity_id)
) WITHOUT ROWID, STRICT;

-- readers: rows that were read but not scored, and why.
CREATE TABLE rejected_rows (
  run_id INTEGER NOT NULL,
  model TEXT NOT NULL,
  entity_id TEXT NOT NULL,
  reason TEXT NOT NULL,
  payload TEXT NOT NULL CHECK (json_valid(payload)),
  part INTEGER NOT NULL
) STRICT;
CREATE INDEX rejected_rows_of_run ON rejected_rows (run_id, part);

-- merge mode: which run a reader sees for an entity.
CREATE TABLE current_rows (
  model TEXT NOT NULL,
  entity_id TEXT NOT NULL,
  run_id INTEGER NOT NULL,
  PRIMARY KEY (model, entity_id)
) WITHOUT ROWID, STRICT;
CREATE INDEX current_rows_of_run ON current_rows (run_id);

-- merge mode: when a row stopped being the current one of its entity (at once, if never shown).
CREATE TABLE superseded_rows (
  run_id INTEGER NOT NULL,
  entity_id TEXT NOT NULL,
  superseded_at TEXT NOT NULL,
  PRIMARY KEY (run_id, entity_id)
) WITHOUT ROWID, STRICT;
CREATE INDEX superseded_by_age ON superseded_rows (superseded_at);

-- The version pointer: one row a model, moved forward only, inside the publishing transaction.
CREATE TABLE serving_heads (
  model TEXT PRIMARY KEY,
  mode TEXT NOT NULL CHECK (mode IN ('merge', 'replace')),
  run_id INTEGER NOT NULL REFERENCES prediction_runs (run_id),
  interval_start TEXT NOT NULL,
  interval_end TEXT NOT NULL,
  published_at TEXT NOT NULL,
  due_from TEXT NOT NULL,     -- start of the first interval ever published: older ones are not due
  fresh_until TEXT NOT NULL   -- every interval due from due_from to here is published
) WITHOUT ROWID, STRICT;

-- Alerts wait here until Slack has them; failures of one subject and cause are one incident.
CREATE TABLE alerts (
  key TEXT PRIMARY KEY,     -- what happened, so that a second report of it is known
  subject TEXT,             -- the DAG or file that failed; NULL if nothing failed
  cause TEXT,
  text TEXT,                -- redacted and escaped; NULL if only counted in its incident
  created_at TEXT NOT NULL,
  closed_at TEXT,           -- when the subject worked again
  claimed_at TEXT,          -- a sender holds it for 30 seconds
  sent_at TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  error TEXT
) STRICT;
CREATE INDEX open_incidents ON alerts (subject, cause) WHERE closed_at IS NULL;
CREATE INDEX waiting_alerts ON alerts (created_at) WHERE sent_at IS NULL AND text IS NOT NULL;

-- The first line of a task's exception, for the DAG-level callback that does not get it.
CREATE TABLE task_errors (
  dag_id TEXT NOT NULL,
  run_id TEXT NOT NULL,
  task_id TEXT NOT NULL,
  map_index INTEGER NOT NULL,
  try_number INTEGER NOT NULL,
  error TEXT NOT NULL,
  recorded_at TEXT NOT NULL,
  PRIMARY KEY (dag_id, run_id, task_id, map_index)
) STRICT;

-- requesters: what POST /predict was asked and has answered; no row is ever changed.
CREATE TABLE online_predictions (
  prediction_id INTEGER PRIMARY KEY CHECK (prediction_id BETWEEN 1 AND 9007199254740991),
  model TEXT NOT NULL,
  model_version TEXT NOT NULL,
  features TEXT NOT NULL CHECK (json_valid(features)),
  score REAL NOT NULL CHECK (abs(score) <= 1.7976931348623157e308),
  label TEXT,
  created_at TEXT NOT NULL,
  client TEXT NOT NULL,  -- who asked: the hash of a key, or nothing
  idempotency_key TEXT,
  request_sha256 TEXT NOT NULL,
  FOREIGN KEY (model, model_version) REFERENCES model_versions (model, version)
) STRICT;
CREATE UNIQUE INDEX one_answer_a_key ON online_predictions (client, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX online_predictions_by_age ON online_predictions (model, created_at);

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

-- readers: the version of the contract, whose columns are told in the views themselves.
CREATE VIEW read_contract (
  version  -- the first number changes when something is taken away
) AS SELECT '1.0';

-- readers: what the app saw at T is published_at <= T AND (superseded_at IS NULL OR superseded_at > T).
CREATE VIEW prediction_history (
  model,  -- name of the model's file
  entity_id,  -- key of the features query, unique within its model
  score,  -- finite: the regression's value, or the probability of the positive class (of two) or of the predicted one (of more)
  label,  -- predicted class as text; NULL for a regression
  model_version,  -- version that scored the row; see model_versions
  run_id,  -- prediction run that published the row; see prediction_runs
  interval_start,  -- start of the interval that was scored, UTC, included
  interval_end,  -- end of the interval that was scored, UTC, not included
  published_at,  -- when readers could first see the row, UTC
  superseded_at,  -- when readers could no longer see the row, UTC; NULL while they can
  hindsight  -- 1 if a version scored the row that was trained after its interval, else 0
) AS
  SELECT r.model, p.entity_id, p.score, p.label, r.model_version, r.run_id,
         r.interval_start, r.interval_end, r.published_at,
         COALESCE(s.superseded_at, r.superseded_at) AS superseded_at, r.hindsight
  FROM prediction_runs AS r
  JOIN predictions AS p ON p.run_id = r.run_id
  LEFT JOIN superseded_rows AS s ON s.run_id = p.run_id AND s.entity_id = p.entity_id
  WHERE r.state IN ('published', 'superseded');

-- readers: what readers see now: one row an entity.
CREATE VIEW current_predictions (
  model,  -- name of the model's file
  entity_id,  -- key of the features query, unique within its model
  score,  -- finite: the regression's value, or the probability of the positive class (of two) or of the predicted one (of more)
  label,  -- predicted class as text; NULL for a regression
  model_version,  -- version that scored the row; see model_versions
  run_id,  -- prediction run that published the row; see prediction_runs
  interval_start,  -- start of the interval that was scored, UTC, included
  interval_end,  -- end of the interval that was scored, UTC, not included
  published_at  -- when readers could first see the row, UTC
) AS
  SELECT c.model, c.entity_id, p.score, p.label, r.model_version, c.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM current_rows AS c
  JOIN prediction_runs AS r ON r.run_id = c.run_id
  JOIN predictions AS p ON p.run_id = c.run_id AND p.entity_id = c.entity_id
  WHERE r.superseded_at IS NULL  -- else the whole run has expired, whatever is left of it here
  UNION ALL
  SELECT h.model, p.entity_id, p.score, p.label, r.model_version, h.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM serving_heads AS h
  JOIN prediction_runs AS r ON r.run_id = h.run_id
  JOIN predictions AS p ON p.run_id = h.run_id
  WHERE h.mode = 'replace';

-- readers: how fresh each model is: one row a model.
CREATE VIEW serving_status (
  model,  -- name of the model's file; one row each, from its first publication on
  run_id,  -- run of the newest interval that is published
  model_version,  -- version that scored that run
  interval_start,  -- start of that interval, UTC, included
  interval_end,  -- end of that interval, UTC, not included
  published_at,  -- when that run was published, UTC
  row_count,  -- how many rows that run has
  fresh_until  -- end of the newest interval up to which every due one is published, UTC
) AS
  SELECT h.model, h.run_id, r.model_version, h.interval_start, h.interval_end, h.published_at,
         r.rows_scored AS row_count, h.fresh_until
  FROM serving_heads AS h
  JOIN prediction_runs AS r ON r.run_id = h.run_id;
