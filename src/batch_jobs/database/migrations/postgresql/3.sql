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

-- Each publication asks for the newest one before it, and for the runs that end after the watermark.
CREATE INDEX published_in_order ON prediction_runs (model, published_at)
  WHERE published_at IS NOT NULL;
CREATE INDEX published_ends ON prediction_runs (model, interval_end);

-- readers: the version of the contract, whose columns are these.
CREATE VIEW read_contract AS SELECT '1.0' AS version;
COMMENT ON VIEW read_contract IS 'the version of the read contract; the first number changes when something is taken away';
COMMENT ON VIEW current_predictions IS 'what readers see now: one row an entity';
COMMENT ON VIEW serving_status IS 'how fresh each model is: one row a model';
COMMENT ON VIEW prediction_history IS 'what readers saw at any moment T: published_at <= T AND (superseded_at IS NULL OR superseded_at > T)';

COMMENT ON COLUMN current_predictions.model IS 'name of the model''s file';
COMMENT ON COLUMN current_predictions.entity_id IS 'key of the features query, unique within its model';
COMMENT ON COLUMN current_predictions.score IS 'finite: the regression''s value, or the probability of the positive class (of two) or of the predicted one (of more)';
COMMENT ON COLUMN current_predictions.label IS 'predicted class as text; NULL for a regression';
COMMENT ON COLUMN current_predictions.model_version IS 'version that scored the row; see model_versions';
COMMENT ON COLUMN current_predictions.run_id IS 'prediction run that published the row; see prediction_runs';
COMMENT ON COLUMN current_predictions.interval_start IS 'start of the interval that was scored, UTC, included';
COMMENT ON COLUMN current_predictions.interval_end IS 'end of the interval that was scored, UTC, not included';
COMMENT ON COLUMN current_predictions.published_at IS 'when readers could first see the row, UTC';

COMMENT ON COLUMN serving_status.model IS 'name of the model''s file; one row each, from its first publication on';
COMMENT ON COLUMN serving_status.run_id IS 'run of the newest interval that is published';
COMMENT ON COLUMN serving_status.model_version IS 'version that scored that run';
COMMENT ON COLUMN serving_status.interval_start IS 'start of that interval, UTC, included';
COMMENT ON COLUMN serving_status.interval_end IS 'end of that interval, UTC, not included';
COMMENT ON COLUMN serving_status.published_at IS 'when that run was published, UTC';
COMMENT ON COLUMN serving_status.row_count IS 'how many rows that run has';
COMMENT ON COLUMN serving_status.fresh_until IS 'end of the newest interval up to which every due one is published, UTC';

COMMENT ON COLUMN prediction_history.model IS 'name of the model''s file';
COMMENT ON COLUMN prediction_history.entity_id IS 'key of the features query, unique within its model';
COMMENT ON COLUMN prediction_history.score IS 'finite: the regression''s value, or the probability of the positive class (of two) or of the predicted one (of more)';
COMMENT ON COLUMN prediction_history.label IS 'predicted class as text; NULL for a regression';
COMMENT ON COLUMN prediction_history.model_version IS 'version that scored the row; see model_versions';
COMMENT ON COLUMN prediction_history.run_id IS 'prediction run that published the row; see prediction_runs';
COMMENT ON COLUMN prediction_history.interval_start IS 'start of the interval that was scored, UTC, included';
COMMENT ON COLUMN prediction_history.interval_end IS 'end of the interval that was scored, UTC, not included';
COMMENT ON COLUMN prediction_history.published_at IS 'when readers could first see the row, UTC';
COMMENT ON COLUMN prediction_history.superseded_at IS 'when readers could no longer see the row, UTC; NULL while they can';
COMMENT ON COLUMN prediction_history.hindsight IS '1 if a version scored the row that was trained after its interval, else 0';
