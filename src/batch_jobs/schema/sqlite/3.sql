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
