-- From schema version 5 to 6: artifacts that retention has removed.

ALTER TABLE model_versions
  ADD COLUMN artifact_removed_at timestamptz,  -- nobody loads it from then on
  ADD COLUMN artifact_gone smallint NOT NULL DEFAULT 0
    CHECK (artifact_gone IN (0, 1));  -- whether the store has nothing left of it

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'batch_jobs_writer') THEN  -- see roles.sql
    GRANT UPDATE (artifact_removed_at, artifact_gone) ON model_versions TO batch_jobs_writer;
  END IF;
END$$;

-- Why a part has failed its run: the next try of the part makes that good. From now on `claimed_at`
-- of a run is when its attempt claimed the interval or was last heard of.
ALTER TABLE run_parts ADD COLUMN error text;
-- What was asked of the interval when its rows were refused, as a digest: the same is not asked again.
ALTER TABLE prediction_runs ADD COLUMN refused text;
