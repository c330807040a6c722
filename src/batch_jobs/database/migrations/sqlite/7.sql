-- The warehouse on SQLite, from schema version 6 to 7: monitoring, incidents, the watch.

-- == profiles of published runs and of days, and what drift found in them ==

-- What each part of a run looked like: a profile, encoded; NULL if none could be made.
ALTER TABLE run_parts ADD COLUMN profile BLOB;

-- Profiles of a day or an hour of what one version published, merged from those of its runs.
CREATE TABLE profiles (
  model TEXT NOT NULL,
  grain TEXT NOT NULL CHECK (grain IN ('hour', 'day')),
  span_start TEXT NOT NULL,
  model_version TEXT NOT NULL,
  runs TEXT NOT NULL,  -- digest of the runs in it: another one is merged anew
  profile BLOB NOT NULL,
  folded_at TEXT NOT NULL,
  PRIMARY KEY (model, grain, span_start, model_version)
) WITHOUT ROWID, STRICT;

-- What was found unlike training, one row a finding and window; a later look at a window replaces it.
CREATE TABLE drift_findings (
  model TEXT NOT NULL,
  model_version TEXT NOT NULL,
  window_start TEXT NOT NULL,
  window_end TEXT NOT NULL,
  kind TEXT NOT NULL,
  feature TEXT NOT NULL,
  item TEXT NOT NULL DEFAULT '',
  days INTEGER NOT NULL,
  reference_days INTEGER NOT NULL,
  reference REAL,
  value REAL,
  lowest REAL,
  highest REAL,
  severity REAL NOT NULL,
  rows_affected REAL,
  words TEXT NOT NULL,
  found_at TEXT NOT NULL,
  PRIMARY KEY (model, window_end, window_start, model_version, kind, feature, item)
) WITHOUT ROWID, STRICT;

-- readers: what of a model's rows was unlike those that it was trained on: one row a finding and window.
CREATE VIEW model_drift (
  model,  -- name of the model's file
  model_version,  -- version whose predictions were judged, each against its own training; see model_versions
  window_start,  -- start of the days that were judged, UTC, included
  window_end,  -- end of those days, UTC, not included
  kind,  -- what is unlike training: level, spread, shape, nulls, category, unseen, range, stuck, relation, volume, slice, rejected, scores or labels
  feature,  -- feature it is about; `score`, `label` or `rows` if it is none
  item,  -- value of the category, or part of the feature, that it is about; '' if it is the whole
  days,  -- how many days with rows were judged
  reference_days,  -- how many days of training they were compared with
  reference,  -- what is usual: the middle of those days
  value,  -- what was found
  lowest,  -- least that is usual enough to be no finding
  highest,  -- most that is usual enough to be no finding
  severity,  -- how far off, 1 being the limit
  rows_affected,  -- share of the rows judged that are affected, as far as can be told
  words,  -- what happened, in one line
  found_at  -- when it was last found so, UTC
) AS
  SELECT model, model_version, window_start, window_end, kind, feature, item, days,
         reference_days, reference, value, lowest, highest, severity, rows_affected, words,
         found_at
  FROM drift_findings;

-- == end of profiles of published runs and of days, and what drift found in them ==

-- == performance on late labels ==

-- == end of performance on late labels ==

-- == incidents, the outbox and mutes ==

-- == end of incidents, the outbox and mutes ==

-- == the watch ==

-- == end of the watch ==

-- == the prediction API ==

-- == end of the prediction API ==
