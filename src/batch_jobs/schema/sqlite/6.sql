-- The warehouse on SQLite, from schema version 5 to 6: artifacts that retention has removed.

ALTER TABLE model_versions ADD COLUMN artifact_removed_at TEXT;  -- nobody loads it from then on
ALTER TABLE model_versions ADD COLUMN artifact_gone INTEGER NOT NULL DEFAULT 0
  CHECK (artifact_gone IN (0, 1));  -- whether the store has nothing left of it
