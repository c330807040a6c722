-- From schema version 2 to 3: predictions that are computed on request.

-- requesters: what POST /predict was asked and has answered; no row is ever changed.
CREATE TABLE online_predictions (
  prediction_id bigint PRIMARY KEY CHECK (prediction_id BETWEEN 1 AND 9007199254740991),
  model text COLLATE "C" NOT NULL,
  model_version text COLLATE "C" NOT NULL,
  features json NOT NULL,
  score double precision NOT NULL CHECK (abs(score) <= 1.7976931348623157e308),
  label text COLLATE "C",
  created_at timestamptz NOT NULL,
  client text COLLATE "C" NOT NULL,  -- who asked: the hash of a key, or nothing
  idempotency_key text COLLATE "C",
  request_sha256 text NOT NULL,
  FOREIGN KEY (model, model_version) REFERENCES model_versions (model, version)
);
CREATE UNIQUE INDEX one_answer_a_key ON online_predictions (client, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX online_predictions_by_age ON online_predictions (model, created_at);
