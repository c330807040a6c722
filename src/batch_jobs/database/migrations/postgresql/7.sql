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
  run_count integer NOT NULL,  -- that have a profile
  missing integer NOT NULL,  -- how many runs with rows have none
  covered double precision NOT NULL,  -- share of the span whose intervals are in it
  judged integer NOT NULL DEFAULT 0 CHECK (judged IN (0, 1)),  -- whether drift was looked for in it
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

-- Each past window of a model that had predictions, so that only what has changed is judged anew.
CREATE TABLE performance_windows (
  model text COLLATE "C" NOT NULL,
  grain text COLLATE "C" NOT NULL CHECK (grain IN ('day', 'week')),
  window_start timestamptz NOT NULL,
  window_end timestamptz NOT NULL,
  row_count bigint NOT NULL,  -- rows that count
  label_count bigint NOT NULL,  -- of these, rows whose outcome is known
  late_count bigint NOT NULL,  -- rows that do not count: published after their outcome was known
  digest text COLLATE "C" NOT NULL,  -- of all that its figures rest on
  labels_until timestamptz NOT NULL,  -- labels that were known until then
  labels_digest text COLLATE "C" NOT NULL,  -- of those: a label that is changed afterwards changes it
  final smallint NOT NULL CHECK (final IN (0, 1)),
  restated_at timestamptz NOT NULL,
  PRIMARY KEY (model, grain, window_start)
);

-- Its figures: of what was published and of whoever is compared with it; see model_performance.
CREATE TABLE model_performance_rows (
  model text COLLATE "C" NOT NULL,
  grain text COLLATE "C" NOT NULL,
  window_start timestamptz NOT NULL,
  slice text COLLATE "C" NOT NULL,
  contender text COLLATE "C" NOT NULL
    CHECK (contender IN ('published', 'constant', 'before', 'since', 'again')),
  metric text COLLATE "C" NOT NULL,
  estimated smallint NOT NULL CHECK (estimated IN (0, 1)),
  value double precision NOT NULL,
  low double precision NOT NULL,
  high double precision NOT NULL,
  worse_by double precision,
  worse_by_low double precision,
  worse_by_high double precision,
  row_count bigint NOT NULL,
  label_count bigint NOT NULL,
  model_version text COLLATE "C" NOT NULL,
  PRIMARY KEY (model, grain, window_start, slice, contender, metric, estimated)
);

-- Times in which a model did damage, as far as labels have shown it; the newest may be open.
CREATE TABLE damage_episodes (
  model text COLLATE "C" NOT NULL,
  opened_at timestamptz NOT NULL,
  closed_at timestamptz,
  window_start timestamptz NOT NULL,  -- of the newest window that showed it
  evidence json NOT NULL,
  retraining_asked_at timestamptz,  -- once an episode
  PRIMARY KEY (model, opened_at)
);
CREATE UNIQUE INDEX one_open_episode ON damage_episodes (model) WHERE closed_at IS NULL;

-- readers: how well a model did in past windows, by the rows that readers saw in time; restated
-- under the same key (model to estimated) as outcomes become known.
CREATE VIEW model_performance AS
  SELECT p.model, p.grain, p.window_start, w.window_end, p.slice, p.contender, p.metric,
         p.estimated, p.value, p.low, p.high, p.worse_by, p.worse_by_low, p.worse_by_high,
         p.row_count, p.label_count, p.model_version, w.restated_at
  FROM model_performance_rows AS p
  JOIN performance_windows AS w
    ON w.model = p.model AND w.grain = p.grain AND w.window_start = p.window_start;
COMMENT ON VIEW model_performance IS 'how well a model did in past windows, by the rows that readers saw in time; restated under the same key as outcomes become known';

-- == end of performance on late labels ==

-- == incidents, the outbox and mutes ==

-- An incident is one cause of trouble of one model, or of the deployment, until it is over.
CREATE TABLE incident_rows (
  incident_id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  model text COLLATE "C",               -- NULL: of the whole deployment
  cause text COLLATE "C" NOT NULL,      -- the root, as it is muted by
  severity text NOT NULL CHECK (severity IN ('page', 'warn', 'news')),
  title text NOT NULL,      -- this and what follows: of the newest occurrence, redacted
  detail text NOT NULL,
  impact text,
  next_step text,
  subject text COLLATE "C",             -- the DAG, file, host or service
  links text NOT NULL,
  facts text NOT NULL,
  is_passing integer NOT NULL CHECK (is_passing IN (0, 1)),  -- told once, and then over
  occurrences integer NOT NULL,
  opened_at timestamptz NOT NULL,
  last_at timestamptz NOT NULL,
  due_at timestamptz NOT NULL,     -- when it is told first, if it is not over by then
  told integer NOT NULL DEFAULT 0,
  told_at timestamptz,
  resolved_at timestamptz,
  reopened_at timestamptz
);
CREATE UNIQUE INDEX open_incidents_of ON incident_rows (COALESCE(model, ''), cause)
  WHERE resolved_at IS NULL;
CREATE INDEX incidents_by_time ON incident_rows (opened_at);

-- Every occurrence by its name, so that a second report of it is known.
CREATE TABLE incident_reports (
  key text COLLATE "C" PRIMARY KEY,
  reported_at timestamptz NOT NULL
);

-- What nobody wants to be told of for a while; a new one of the same cause replaces the old.
CREATE TABLE mutes (
  model text COLLATE "C" NOT NULL,      -- '': of the whole deployment; '*': of every model
  cause text COLLATE "C" NOT NULL,      -- '*' at its end stands for any ending
  reason text NOT NULL,
  link text NOT NULL,
  until timestamptz NOT NULL,
  muted_by text NOT NULL,
  muted_at timestamptz NOT NULL,
  PRIMARY KEY (model, cause)
);

-- Messages wait here until each channel has them; its own key is the stable id of each.
CREATE TABLE outbox_messages (
  message_id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  key text COLLATE "C" NOT NULL UNIQUE,
  incident_id bigint,      -- NULL: about no incident
  severity text NOT NULL CHECK (severity IN ('page', 'warn', 'news', 'event')),
  line text NOT NULL,       -- the whole in one line, for summaries
  text text NOT NULL,       -- redacted and escaped, as mrkdwn
  blocks text NOT NULL,
  created_at timestamptz NOT NULL,
  dropped_at timestamptz           -- when it was over before any channel had it
);
CREATE INDEX outbox_messages_of ON outbox_messages (incident_id);

-- What became of a message in a channel; no row: it was not tried.
CREATE TABLE outbox_deliveries (
  message_id bigint NOT NULL,
  channel text COLLATE "C" NOT NULL,
  attempts integer NOT NULL DEFAULT 0,
  unanswered integer NOT NULL DEFAULT 0,  -- attempts that may have arrived
  tried_at timestamptz,
  sent_at timestamptz,
  given_up_at timestamptz,
  error text,
  PRIMARY KEY (message_id, channel)
);

-- One sender at a time, so that messages arrive in their order, and rest after a refusal.
CREATE TABLE outbox_channels (
  channel text COLLATE "C" PRIMARY KEY,
  since timestamptz NOT NULL,      -- what is older does not concern it
  severities text NOT NULL,  -- of the messages it is sent
  held_by text,
  held_until timestamptz,
  not_before timestamptz,
  refusals integer NOT NULL DEFAULT 0,
  refused_since timestamptz,
  error text
);

INSERT INTO outbox_messages (key, severity, line, text, blocks, created_at)
  SELECT key, 'page', substr(text, 1, 200), text, '[]', created_at FROM alerts
  WHERE text IS NOT NULL AND sent_at IS NULL ORDER BY created_at;
DROP TABLE alerts;

-- readers: what is wrong, or was: one row a model and cause from the first time until it is over.
CREATE VIEW incidents AS
  SELECT model, cause, severity, title, detail, impact, next_step, subject, occurrences,
         opened_at, last_at, resolved_at
  FROM incident_rows;
COMMENT ON VIEW incidents IS 'what is wrong, or was: one row a model and cause from the first time until it is over';
COMMENT ON COLUMN incidents.model IS 'the model; NULL where it concerns all of them';
COMMENT ON COLUMN incidents.cause IS 'the root cause, by which it is muted';
COMMENT ON COLUMN incidents.severity IS 'page: readers are hurt or will be; warn: look at it in the day; news';
COMMENT ON COLUMN incidents.title IS 'what is wrong, in one line';
COMMENT ON COLUMN incidents.detail IS 'the first line of the newest error';
COMMENT ON COLUMN incidents.impact IS 'what it means for readers, if that is known';
COMMENT ON COLUMN incidents.next_step IS 'what to do';
COMMENT ON COLUMN incidents.subject IS 'the DAG, file, host or service concerned';
COMMENT ON COLUMN incidents.occurrences IS 'how often it was met';
COMMENT ON COLUMN incidents.opened_at IS 'when it was met first';
COMMENT ON COLUMN incidents.last_at IS 'when it was met last';
COMMENT ON COLUMN incidents.resolved_at IS 'when it was over; NULL while it lasts';

-- == end of incidents, the outbox and mutes ==

-- == the watch ==

-- readers: who watches, and when it was heard of last: one row for each host on which one does.
CREATE TABLE signs_of_life (
  name text NOT NULL,  -- what it is: `watch`
  host text NOT NULL,  -- of the machine on which it runs
  seen_at timestamptz NOT NULL,  -- when it began to look last
  every_seconds integer,  -- until its next look; NULL if cron decides
  problems integer NOT NULL DEFAULT 0,  -- how many it found
  failed text,  -- what it could not do at its last look; NULL if it could do all
  memory json NOT NULL DEFAULT '{}',  -- from one look to the next
  PRIMARY KEY (name, host)
);

-- == end of the watch ==

-- == the prediction API ==

-- readers: the current rows of models in merge mode, in the order of their keys: to be paged through.
CREATE VIEW merged_predictions AS
  SELECT c.model, c.entity_id, p.score, p.label, r.model_version, c.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM current_rows AS c
  JOIN prediction_runs AS r ON r.run_id = c.run_id
  JOIN shared_predictions AS p ON p.run_id = c.run_id AND p.entity_id = c.entity_id
  WHERE r.superseded_at IS NULL;
COMMENT ON VIEW merged_predictions IS 'the rows of current_predictions of models in merge mode';

-- readers: rows of merge mode that are current no longer, found by when they were left: those of a
-- page that was begun before. Seen at T: published_at <= T AND left_at > T AND superseded_at > T.
CREATE VIEW left_predictions AS
  SELECT r.model, s.entity_id, p.score, p.label, r.model_version, s.run_id,
         r.interval_start, r.interval_end, r.published_at, s.superseded_at,
         s.superseded_at AS left_at
  FROM superseded_rows AS s
  JOIN prediction_runs AS r ON r.run_id = s.run_id
  JOIN shared_predictions AS p ON p.run_id = s.run_id AND p.entity_id = s.entity_id
  WHERE r.superseded_at IS NULL AND r.state = 'published'
  UNION ALL
  SELECT r.model, p.entity_id, p.score, p.label, r.model_version, r.run_id,
         r.interval_start, r.interval_end, r.published_at,
         COALESCE(s.superseded_at, r.superseded_at), r.superseded_at
  FROM prediction_runs AS r
  JOIN shared_predictions AS p ON p.run_id = r.run_id
  LEFT JOIN superseded_rows AS s ON s.run_id = p.run_id AND s.entity_id = p.entity_id
  WHERE r.superseded_at IS NOT NULL AND r.mode = 'merge' AND r.state IN ('published', 'superseded');
COMMENT ON VIEW left_predictions IS 'rows of merge mode that are current no longer, found by when they were left';

-- requesters: requests that were taken back by who had sent them, before they were answered.
CREATE TABLE cancelled_requests (
  request_id bigint PRIMARY KEY REFERENCES requests ON DELETE CASCADE,
  cancelled_at timestamptz NOT NULL
);
CREATE INDEX requests_of_client ON requests (client, created_at);

-- What writers lock by name, one row a name. Advisory locks anybody can take who can log in: a reader
-- stopped publishing with them.
CREATE TABLE locks (
  name text COLLATE "C" PRIMARY KEY
);

-- == end of the prediction API ==

-- == history ==

-- A key is looked up in the history of ten thousand runs without a look at each of them.
CREATE INDEX shared_predictions_of_entity ON shared_predictions (entity_id);

-- == end of history ==

-- == the model store that the warehouse belongs to: one row ==

CREATE TABLE model_stores (
  number smallint PRIMARY KEY CHECK (number = 1),
  store_id text NOT NULL,  -- what its file .deployment says
  address text NOT NULL,  -- where it was, and for which machine; for people
  host text NOT NULL,
  recorded_at timestamptz NOT NULL
);

-- == end of the model store that the warehouse belongs to ==

-- == golden rows ==

-- Rows of the source with their features, and what a version answered to them: signed as a part of
-- its manifest, and not for readers, who see the manifest. As json, a number stays as it is written.
CREATE TABLE golden_rows (
  model text COLLATE "C" NOT NULL,
  version text COLLATE "C" NOT NULL,
  golden json NOT NULL,
  PRIMARY KEY (model, version),
  FOREIGN KEY (model, version) REFERENCES model_versions (model, version) ON DELETE CASCADE
);
INSERT INTO golden_rows (model, version, golden)
  SELECT model, version, manifest -> 'golden' FROM model_versions
  WHERE json_typeof(manifest -> 'golden') = 'object';
UPDATE model_versions SET manifest =
  (SELECT json_object_agg(key, value) FROM json_each(manifest) WHERE key <> 'golden')
  WHERE json_typeof(manifest -> 'golden') = 'object';

-- == end of golden rows ==
