-- The warehouse on SQLite, from schema version 1 to 2: what staging counts, what is hindsight, what expired.

ALTER TABLE prediction_runs ADD COLUMN hindsight INTEGER NOT NULL DEFAULT 0 CHECK (hindsight IN (0, 1));
ALTER TABLE prediction_runs ADD COLUMN rows_table TEXT NOT NULL DEFAULT 'predictions';
ALTER TABLE prediction_runs ADD COLUMN accepted TEXT;  -- why somebody let it pass the circuit breaker

ALTER TABLE run_parts ADD COLUMN chunks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run_parts ADD COLUMN score_min REAL;
ALTER TABLE run_parts ADD COLUMN score_max REAL;

CREATE INDEX superseded_by_age ON superseded_rows (superseded_at);

-- readers: what the app saw at T is published_at <= T AND (superseded_at IS NULL OR superseded_at > T).
DROP VIEW prediction_history;
CREATE VIEW prediction_history AS
  SELECT r.model, p.entity_id, p.score, p.label, r.model_version, r.run_id,
         r.interval_start, r.interval_end, r.published_at,
         COALESCE(s.superseded_at, r.superseded_at) AS superseded_at, r.hindsight
  FROM prediction_runs AS r
  JOIN predictions AS p ON p.run_id = r.run_id
  LEFT JOIN superseded_rows AS s ON s.run_id = p.run_id AND s.entity_id = p.entity_id
  WHERE r.state IN ('published', 'superseded');

-- readers
DROP VIEW current_predictions;
CREATE VIEW current_predictions AS
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
