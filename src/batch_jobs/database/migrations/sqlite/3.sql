-- The warehouse on SQLite, from schema version 2 to 3: predictions that are computed on request.

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

-- Each publication asks for the newest one before it, and for the runs that end after the watermark.
CREATE INDEX published_in_order ON prediction_runs (model, published_at)
  WHERE published_at IS NOT NULL;
CREATE INDEX published_ends ON prediction_runs (model, interval_end);

-- readers: the version of the contract, whose columns are told in the views themselves.
CREATE VIEW read_contract (
  version  -- the first number changes when something is taken away
) AS SELECT '1.0';

-- readers: what the app saw at T is published_at <= T AND (superseded_at IS NULL OR superseded_at > T).
DROP VIEW prediction_history;
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
DROP VIEW current_predictions;
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
DROP VIEW serving_status;
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
