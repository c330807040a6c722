-- The warehouse on SQLite, schema version 1.
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
  claimed_at TEXT NOT NULL,
  UNIQUE (model, interval_start, interval_end, token),
  FOREIGN KEY (model, model_version) REFERENCES model_versions (model, version),
  CHECK (state NOT IN ('published', 'superseded', 'retired')
         OR (published_at IS NOT NULL AND rows_read = rows_scored + rows_rejected + rows_skipped))
) STRICT;
CREATE UNIQUE INDEX one_published_run ON prediction_runs (model, interval_start, interval_end)
  WHERE state = 'published';
CREATE INDEX published_spans ON prediction_runs (model, interval_start, interval_end, state);

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

-- readers
CREATE VIEW current_predictions AS
  SELECT c.model, c.entity_id, p.score, p.label, r.model_version, c.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM current_rows AS c
  JOIN prediction_runs AS r ON r.run_id = c.run_id
  JOIN predictions AS p ON p.run_id = c.run_id AND p.entity_id = c.entity_id
  UNION ALL
  SELECT h.model, p.entity_id, p.score, p.label, r.model_version, h.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM serving_heads AS h
  JOIN prediction_runs AS r ON r.run_id = h.run_id
  JOIN predictions AS p ON p.run_id = h.run_id
  WHERE h.mode = 'replace';

-- readers
CREATE VIEW serving_status AS
  SELECT h.model, h.run_id, r.model_version, h.interval_start, h.interval_end, h.published_at,
         r.rows_scored AS row_count, h.fresh_until
  FROM serving_heads AS h
  JOIN prediction_runs AS r ON r.run_id = h.run_id;

-- readers: what the app saw at T is published_at <= T AND (superseded_at IS NULL OR superseded_at > T).
CREATE VIEW prediction_history AS
  SELECT r.model, p.entity_id, p.score, p.label, r.model_version, r.run_id,
         r.interval_start, r.interval_end, r.published_at,
         COALESCE(s.superseded_at, r.superseded_at) AS superseded_at
  FROM prediction_runs AS r
  JOIN predictions AS p ON p.run_id = r.run_id
  LEFT JOIN superseded_rows AS s ON s.run_id = p.run_id AND s.entity_id = p.entity_id
  WHERE r.state IN ('published', 'superseded');
