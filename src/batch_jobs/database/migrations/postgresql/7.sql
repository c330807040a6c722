-- The warehouse on PostgreSQL, from schema version 6 to 7: monitoring, incidents, the watch.

-- == profiles of published runs and of days, and what drift found in them ==

-- What each part of a run looked like: a profile, encoded; NULL if none could be made.
ALTER TABLE run_parts ADD COLUMN profile bytea;

-- Profiles of a day or an hour of what one version published, merged from those of its runs.
CREATE TABLE profiles (
  model text COLLATE "C" NOT NULL,
  grain text COLLATE "C" NOT NULL CHECK (grain IN ('hour', 'day')),
  span_start timestamptz NOT NULL,
  model_version text COLLATE "C" NOT NULL,
  runs text NOT NULL,  -- digest of the runs in it: another one is merged anew
  profile bytea NOT NULL,
  folded_at timestamptz NOT NULL,
  PRIMARY KEY (model, grain, span_start, model_version)
);

-- What was found unlike training, one row a finding and window; a later look at a window replaces it.
CREATE TABLE drift_findings (
  model text COLLATE "C" NOT NULL,
  model_version text COLLATE "C" NOT NULL,
  window_start timestamptz NOT NULL,
  window_end timestamptz NOT NULL,
  kind text COLLATE "C" NOT NULL,
  feature text COLLATE "C" NOT NULL,
  item text COLLATE "C" NOT NULL DEFAULT '',
  days integer NOT NULL,
  reference_days integer NOT NULL,
  reference double precision,
  value double precision,
  lowest double precision,
  highest double precision,
  severity double precision NOT NULL,
  rows_affected double precision,
  words text NOT NULL,
  found_at timestamptz NOT NULL,
  PRIMARY KEY (model, window_end, window_start, model_version, kind, feature, item)
);

-- readers
CREATE VIEW model_drift AS
  SELECT model, model_version, window_start, window_end, kind, feature, item, days,
         reference_days, reference, value, lowest, highest, severity, rows_affected, words,
         found_at
  FROM drift_findings;
COMMENT ON VIEW model_drift IS 'what of a model''s rows was unlike those that it was trained on: one row a finding and window';
COMMENT ON COLUMN model_drift.model IS 'name of the model''s file';
COMMENT ON COLUMN model_drift.model_version IS 'version whose predictions were judged, each against its own training; see model_versions';
COMMENT ON COLUMN model_drift.window_start IS 'start of the days that were judged, UTC, included';
COMMENT ON COLUMN model_drift.window_end IS 'end of those days, UTC, not included';
COMMENT ON COLUMN model_drift.kind IS 'what is unlike training: level, spread, shape, nulls, category, unseen, range, stuck, relation, volume, slice, rejected, scores or labels';
COMMENT ON COLUMN model_drift.feature IS 'feature it is about; `score`, `label` or `rows` if it is none';
COMMENT ON COLUMN model_drift.item IS 'value of the category, or part of the feature, that it is about; '''' if it is the whole';
COMMENT ON COLUMN model_drift.days IS 'how many days with rows were judged';
COMMENT ON COLUMN model_drift.reference_days IS 'how many days of training they were compared with';
COMMENT ON COLUMN model_drift.reference IS 'what is usual: the middle of those days';
COMMENT ON COLUMN model_drift.value IS 'what was found';
COMMENT ON COLUMN model_drift.lowest IS 'least that is usual enough to be no finding';
COMMENT ON COLUMN model_drift.highest IS 'most that is usual enough to be no finding';
COMMENT ON COLUMN model_drift.severity IS 'how far off, 1 being the limit';
COMMENT ON COLUMN model_drift.rows_affected IS 'share of the rows judged that are affected, as far as can be told';
COMMENT ON COLUMN model_drift.words IS 'what happened, in one line';
COMMENT ON COLUMN model_drift.found_at IS 'when it was last found so, UTC';

-- == end of profiles of published runs and of days, and what drift found in them ==

-- == performance on late labels ==

-- == end of performance on late labels ==

-- == incidents, the outbox and mutes ==

-- == end of incidents, the outbox and mutes ==

-- == the watch ==

-- == end of the watch ==

-- == the prediction API ==

-- == end of the prediction API ==
