-- The warehouse on SQLite, from schema version 5 to 6: artifacts that retention has removed.

ALTER TABLE model_versions ADD COLUMN artifact_removed_at TEXT;  -- nobody loads it from then on
ALTER TABLE model_versions ADD COLUMN artifact_gone INTEGER NOT NULL DEFAULT 0
  CHECK (artifact_gone IN (0, 1));  -- whether the store has nothing left of it

-- Why a part has failed its run: the next try of the part makes that good. From now on `claimed_at`
-- of a run is when its attempt claimed the interval or was last heard of.
ALTER TABLE run_parts ADD COLUMN error TEXT;
-- What was asked of the interval when its rows were refused, as a digest: the same is not asked again.
ALTER TABLE prediction_runs ADD COLUMN refused TEXT;
