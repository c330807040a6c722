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
  run_count INTEGER NOT NULL,  -- that have a profile
  missing INTEGER NOT NULL,  -- how many runs with rows have none
  covered REAL NOT NULL,  -- share of the span whose intervals are in it
  judged INTEGER NOT NULL DEFAULT 0 CHECK (judged IN (0, 1)),  -- whether drift was looked for in it
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

-- Each past window of a model that had predictions, so that only what has changed is judged anew.
CREATE TABLE performance_windows (
  model TEXT NOT NULL,
  grain TEXT NOT NULL CHECK (grain IN ('day', 'week')),
  window_start TEXT NOT NULL,
  window_end TEXT NOT NULL,
  row_count INTEGER NOT NULL,  -- rows that count
  label_count INTEGER NOT NULL,  -- of these, rows whose outcome is known
  late_count INTEGER NOT NULL,  -- rows that do not count: published after their outcome was known
  digest TEXT NOT NULL,  -- of all that its figures rest on
  labels_until TEXT NOT NULL,  -- labels that were known until then
  labels_digest TEXT NOT NULL,  -- of those: a label that is changed afterwards changes it
  final INTEGER NOT NULL CHECK (final IN (0, 1)),
  restated_at TEXT NOT NULL,
  PRIMARY KEY (model, grain, window_start)
) WITHOUT ROWID, STRICT;

-- Its figures: of what was published and of whoever is compared with it; see model_performance.
CREATE TABLE model_performance_rows (
  model TEXT NOT NULL,
  grain TEXT NOT NULL,
  window_start TEXT NOT NULL,
  slice TEXT NOT NULL,
  contender TEXT NOT NULL
    CHECK (contender IN ('published', 'constant', 'before', 'since', 'again')),
  metric TEXT NOT NULL,
  estimated INTEGER NOT NULL CHECK (estimated IN (0, 1)),
  value REAL NOT NULL,
  low REAL NOT NULL,
  high REAL NOT NULL,
  worse_by REAL,
  worse_by_low REAL,
  worse_by_high REAL,
  row_count INTEGER NOT NULL,
  label_count INTEGER NOT NULL,
  model_version TEXT NOT NULL,
  PRIMARY KEY (model, grain, window_start, slice, contender, metric, estimated)
) WITHOUT ROWID, STRICT;

-- Times in which a model did damage, as far as labels have shown it; the newest may be open.
CREATE TABLE damage_episodes (
  model TEXT NOT NULL,
  opened_at TEXT NOT NULL,
  closed_at TEXT,
  window_start TEXT NOT NULL,  -- of the newest window that showed it
  evidence TEXT NOT NULL CHECK (json_valid(evidence)),
  retraining_asked_at TEXT,  -- once an episode
  PRIMARY KEY (model, opened_at)
) WITHOUT ROWID, STRICT;
CREATE UNIQUE INDEX one_open_episode ON damage_episodes (model) WHERE closed_at IS NULL;

-- readers: how well a model did in past windows, by the rows that readers saw in time; restated
-- under the same key (model to estimated) as outcomes become known.
CREATE VIEW model_performance (
  model,  -- name of the model's file
  grain,  -- day or week, of UTC; weeks begin on Mondays
  window_start,  -- start of the window, UTC, included
  window_end,  -- end of the window, UTC, not included
  slice,  -- feature=value, or nothing for all rows
  contender,  -- published: what readers saw; constant: the share or mean known from training; before, since: the version that served before and the newest one trained since, on the same rows; again: the version that served, on the rows as they are now
  metric,  -- log_loss, brier, auc, calibration_error, bias, base_rate, accuracy, mae, rmse; error_rate and mse are what contenders are compared by where no other is
  estimated,  -- 1 if outcomes are not known and the scores are taken at their word, else 0
  value,  -- of the metric
  low,  -- lower bound of its interval
  high,  -- upper bound of its interval
  worse_by,  -- how much higher the loss of what was published is on the same rows; NULL of published
  worse_by_low,  -- lower bound of its interval
  worse_by_high,  -- upper bound of its interval
  row_count,  -- rows of the window and slice
  label_count,  -- rows that the value rests on
  model_version,  -- version that scored most rows, or the contender's
  restated_at  -- when the figures of the window were last computed, UTC
) AS
  SELECT p.model, p.grain, p.window_start, w.window_end, p.slice, p.contender, p.metric,
         p.estimated, p.value, p.low, p.high, p.worse_by, p.worse_by_low, p.worse_by_high,
         p.row_count, p.label_count, p.model_version, w.restated_at
  FROM model_performance_rows AS p
  JOIN performance_windows AS w
    ON w.model = p.model AND w.grain = p.grain AND w.window_start = p.window_start;

-- == end of performance on late labels ==

-- == incidents, the outbox and mutes ==

-- An incident is one cause of trouble of one model, or of the deployment, until it is over.
CREATE TABLE incident_rows (
  incident_id INTEGER PRIMARY KEY AUTOINCREMENT,
  model TEXT,               -- NULL: of the whole deployment
  cause TEXT NOT NULL,      -- the root, as it is muted by
  severity TEXT NOT NULL CHECK (severity IN ('page', 'warn', 'news')),
  title TEXT NOT NULL,      -- this and what follows: of the newest occurrence, redacted
  detail TEXT NOT NULL,
  impact TEXT,
  next_step TEXT,
  subject TEXT,             -- the DAG, file, host or service
  links TEXT NOT NULL CHECK (json_valid(links)),
  facts TEXT NOT NULL CHECK (json_valid(facts)),
  is_passing INTEGER NOT NULL CHECK (is_passing IN (0, 1)),  -- told once, and then over
  occurrences INTEGER NOT NULL,
  opened_at TEXT NOT NULL,
  last_at TEXT NOT NULL,
  due_at TEXT NOT NULL,     -- when it is told first, if it is not over by then
  told INTEGER NOT NULL DEFAULT 0,
  told_at TEXT,
  resolved_at TEXT,
  reopened_at TEXT
) STRICT;
CREATE UNIQUE INDEX open_incidents_of ON incident_rows (COALESCE(model, ''), cause)
  WHERE resolved_at IS NULL;
CREATE INDEX incidents_by_time ON incident_rows (opened_at);

-- Every occurrence by its name, so that a second report of it is known.
CREATE TABLE incident_reports (
  key TEXT PRIMARY KEY,
  reported_at TEXT NOT NULL
) WITHOUT ROWID, STRICT;

-- What nobody wants to be told of for a while; a new one of the same cause replaces the old.
CREATE TABLE mutes (
  model TEXT NOT NULL,      -- '': of the whole deployment; '*': of every model
  cause TEXT NOT NULL,      -- '*' at its end stands for any ending
  reason TEXT NOT NULL,
  link TEXT NOT NULL,
  until TEXT NOT NULL,
  muted_by TEXT NOT NULL,
  muted_at TEXT NOT NULL,
  PRIMARY KEY (model, cause)
) WITHOUT ROWID, STRICT;

-- Messages wait here until each channel has them; its own key is the stable id of each.
CREATE TABLE outbox_messages (
  message_id INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT NOT NULL UNIQUE,
  incident_id INTEGER,      -- NULL: about no incident
  severity TEXT NOT NULL CHECK (severity IN ('page', 'warn', 'news', 'event')),
  line TEXT NOT NULL,       -- the whole in one line, for summaries
  text TEXT NOT NULL,       -- redacted and escaped, as mrkdwn
  blocks TEXT NOT NULL CHECK (json_valid(blocks)),
  created_at TEXT NOT NULL,
  dropped_at TEXT           -- when it was over before any channel had it
) STRICT;
CREATE INDEX outbox_messages_of ON outbox_messages (incident_id);

-- What became of a message in a channel; no row: it was not tried.
CREATE TABLE outbox_deliveries (
  message_id INTEGER NOT NULL,
  channel TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  unanswered INTEGER NOT NULL DEFAULT 0,  -- attempts that may have arrived
  tried_at TEXT,
  sent_at TEXT,
  given_up_at TEXT,
  error TEXT,
  PRIMARY KEY (message_id, channel)
) WITHOUT ROWID, STRICT;

-- One sender at a time, so that messages arrive in their order, and rest after a refusal.
CREATE TABLE outbox_channels (
  channel TEXT PRIMARY KEY,
  since TEXT NOT NULL,      -- what is older does not concern it
  severities TEXT NOT NULL,  -- of the messages it is sent
  held_by TEXT,
  held_until TEXT,
  not_before TEXT,
  refusals INTEGER NOT NULL DEFAULT 0,
  refused_since TEXT,
  error TEXT
) WITHOUT ROWID, STRICT;

INSERT INTO outbox_messages (key, severity, line, text, blocks, created_at)
  SELECT key, 'page', substr(text, 1, 200), text, '[]', created_at FROM alerts
  WHERE text IS NOT NULL AND sent_at IS NULL ORDER BY created_at;
DROP TABLE alerts;

-- readers: what is wrong, or was: one row a model and cause from the first time until it is over.
CREATE VIEW incidents (
  model,  -- the model; NULL where it concerns all of them
  cause,  -- the root cause, by which it is muted
  severity,  -- page: readers are hurt or will be; warn: look at it in the day; news
  title,  -- what is wrong, in one line
  detail,  -- the first line of the newest error
  impact,  -- what it means for readers, if that is known
  next_step,  -- what to do
  subject,  -- the DAG, file, host or service concerned
  occurrences,  -- how often it was met
  opened_at,  -- when it was met first
  last_at,  -- when it was met last
  resolved_at  -- when it was over; NULL while it lasts
) AS
  SELECT model, cause, severity, title, detail, impact, next_step, subject, occurrences,
         opened_at, last_at, resolved_at
  FROM incident_rows;

-- == end of incidents, the outbox and mutes ==

-- == the watch ==

-- readers: who watches, and when it was heard of last: one row for each host on which one does.
CREATE TABLE signs_of_life (
  name TEXT NOT NULL,  -- what it is: `watch`
  host TEXT NOT NULL,  -- of the machine on which it runs
  seen_at TEXT NOT NULL,  -- when it began to look last, UTC
  every_seconds INTEGER,  -- until its next look; NULL if cron decides
  problems INTEGER NOT NULL DEFAULT 0,  -- how many it found
  failed TEXT,  -- what it could not do at its last look; NULL if it could do all
  memory TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(memory)),  -- from one look to the next
  PRIMARY KEY (name, host)
) WITHOUT ROWID, STRICT;

-- == end of the watch ==

-- == the prediction API ==

-- readers: the current rows of models in merge mode, in the order of their keys: to be paged through.
CREATE VIEW merged_predictions (
  model, entity_id, score, label, model_version, run_id, interval_start, interval_end, published_at
) AS
  SELECT c.model, c.entity_id, p.score, p.label, r.model_version, c.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM current_rows AS c
  JOIN prediction_runs AS r ON r.run_id = c.run_id
  JOIN predictions AS p ON p.run_id = c.run_id AND p.entity_id = c.entity_id
  WHERE r.superseded_at IS NULL;

-- readers: rows of merge mode that are current no longer, found by when they were left: those of a
-- page that was begun before. Seen at T: published_at <= T AND left_at > T AND superseded_at > T.
CREATE VIEW left_predictions (
  model, entity_id, score, label, model_version, run_id, interval_start, interval_end, published_at,
  superseded_at, left_at
) AS
  SELECT r.model, s.entity_id, p.score, p.label, r.model_version, s.run_id,
         r.interval_start, r.interval_end, r.published_at, s.superseded_at, s.superseded_at
  FROM superseded_rows AS s
  JOIN prediction_runs AS r ON r.run_id = s.run_id
  JOIN predictions AS p ON p.run_id = s.run_id AND p.entity_id = s.entity_id
  WHERE r.superseded_at IS NULL AND r.state = 'published'
  UNION ALL
  SELECT r.model, p.entity_id, p.score, p.label, r.model_version, r.run_id,
         r.interval_start, r.interval_end, r.published_at,
         COALESCE(s.superseded_at, r.superseded_at), r.superseded_at
  FROM prediction_runs AS r
  JOIN predictions AS p ON p.run_id = r.run_id
  LEFT JOIN superseded_rows AS s ON s.run_id = p.run_id AND s.entity_id = p.entity_id
  WHERE r.superseded_at IS NOT NULL AND r.mode = 'merge' AND r.state IN ('published', 'superseded');

-- requesters: requests that were taken back by who had sent them, before they were answered.
CREATE TABLE cancelled_requests (
  request_id INTEGER PRIMARY KEY REFERENCES requests ON DELETE CASCADE,
  cancelled_at TEXT NOT NULL
) STRICT;
CREATE INDEX requests_of_client ON requests (client, created_at);

-- == end of the prediction API ==

-- == the model store that the warehouse belongs to: one row ==

CREATE TABLE model_stores (
  number INTEGER PRIMARY KEY CHECK (number = 1),
  store_id TEXT NOT NULL,  -- what its file .deployment says
  address TEXT NOT NULL,  -- where it was, and for which machine; for people
  host TEXT NOT NULL,
  recorded_at TEXT NOT NULL
) STRICT;

-- == end of the model store that the warehouse belongs to ==

-- == golden rows ==

-- Rows of the source with their features, and what a version answered to them: signed as a part of
-- its manifest, and not for readers, who see the manifest.
CREATE TABLE golden_rows (
  model TEXT NOT NULL,
  version TEXT NOT NULL,
  golden TEXT NOT NULL CHECK (json_valid(golden)),
  PRIMARY KEY (model, version),
  FOREIGN KEY (model, version) REFERENCES model_versions (model, version) ON DELETE CASCADE
) STRICT;
INSERT INTO golden_rows (model, version, golden)
  SELECT model, version, json_extract(manifest, '$.golden') FROM model_versions
  WHERE json_type(manifest, '$.golden') = 'object';
UPDATE model_versions SET manifest = json_remove(manifest, '$.golden')
  WHERE json_type(manifest, '$.golden') = 'object';

-- == end of golden rows ==
