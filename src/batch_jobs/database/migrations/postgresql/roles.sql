-- The rights of those who write and of those who read the warehouse on PostgreSQL: run by
-- `batch-jobs init --roles`, in one transaction; safe to repeat, and to be repeated after an upgrade.
-- Nobody can log in as one of these roles; a DBA grants them to logins:
--   GRANT batch_jobs_writer TO airflow;   GRANT SELECT ON orders TO batch_jobs_writer;
--   GRANT batch_jobs_reader TO app;
--   GRANT batch_jobs_requester TO prediction_api;

-- Writers may create functions in the schema; none of them shall run in here.
SET LOCAL search_path = pg_catalog;

DO $$
DECLARE
  role text;
BEGIN
  FOREACH role IN ARRAY ARRAY['batch_jobs_writer', 'batch_jobs_reader', 'batch_jobs_requester'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', role);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;  -- roles belong to the whole server, and another database has just made it
      END;
    END IF;
  END LOOP;
END$$;

-- What everybody has is also what a reader has.
REVOKE ALL ON SCHEMA serving FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA serving FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA serving FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
DO $$
BEGIN
  EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END$$;

-- Large objects: everybody may make them, as many and as large as there is room for.
DO $$
DECLARE
  function regprocedure;
BEGIN
  FOR function IN
    SELECT oid FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^lo(_|write$|read$)'
      AND has_function_privilege('public', oid, 'EXECUTE')
      AND pg_has_role(proowner, 'USAGE')  -- else the owner is asked to, by `init --roles`
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
  END LOOP;
END$$;

-- Readers: the contract, and nothing else. The views read with the rights of their owner.
GRANT USAGE ON SCHEMA serving TO batch_jobs_reader, batch_jobs_requester;
GRANT SELECT ON
  serving.current_predictions, serving.serving_status, serving.prediction_history,
  serving.read_contract, serving.model_drift,
  serving.predictions, serving.prediction_runs, serving.rejected_rows,
  serving.model_versions, serving.promotions,
  serving.incidents
TO batch_jobs_reader, batch_jobs_requester;

-- The watch writes as one of the writers; everybody may see when it was heard of last.
GRANT SELECT ON serving.signs_of_life TO batch_jobs_reader, batch_jobs_requester;
GRANT INSERT, UPDATE, DELETE ON serving.signs_of_life TO batch_jobs_writer;

-- What the prediction API pages through.
GRANT SELECT ON serving.merged_predictions, serving.left_predictions
TO batch_jobs_reader, batch_jobs_requester;

-- Requesters: readers who also ask for predictions. What was answered, nobody changes; a request is
-- added as one that waits, since neither its state nor who works on it can be given.
GRANT SELECT, INSERT ON serving.online_predictions TO batch_jobs_requester;
GRANT SELECT ON serving.requests, serving.request_rows, serving.request_results,
  serving.request_rejects
TO batch_jobs_requester;
GRANT INSERT (request_id, model, client, idempotency_key, request_sha256, created_at, rows_read)
ON serving.requests TO batch_jobs_requester;
GRANT INSERT ON serving.request_rows TO batch_jobs_requester;
GRANT SELECT, INSERT ON serving.cancelled_requests TO batch_jobs_requester;

-- They load versions, which must answer their golden rows as ever.
GRANT SELECT ON serving.golden_rows TO batch_jobs_requester;

-- Writers: what train, promote, predict, answer, prune and the alerts do. A version keeps its sha256, and
-- promotions and the ledger lose no row. CREATE is for the tables of large populations.
GRANT USAGE, CREATE ON SCHEMA serving TO batch_jobs_writer;
GRANT SELECT ON ALL TABLES IN SCHEMA serving TO batch_jobs_writer;
GRANT INSERT ON serving.promotions, serving.golden_rows TO batch_jobs_writer;
GRANT INSERT, UPDATE ON serving.locks TO batch_jobs_writer;
GRANT INSERT, UPDATE (created_at, metrics, gate, artifact_removed_at, artifact_gone)
ON serving.model_versions TO batch_jobs_writer;
GRANT INSERT, UPDATE ON
  serving.fences, serving.prediction_runs, serving.run_parts, serving.serving_heads
TO batch_jobs_writer;
GRANT INSERT, DELETE ON
  serving.shared_predictions, serving.rejected_rows, serving.superseded_rows
TO batch_jobs_writer;
GRANT DELETE ON serving.online_predictions, serving.request_rows TO batch_jobs_writer;
GRANT DELETE, UPDATE (
  state, rows_scored, rows_rejected, rows_skipped, model_version, token, claimed_at, attempts,
  finished_at, error
) ON serving.requests TO batch_jobs_writer;
GRANT INSERT, DELETE ON serving.request_results, serving.request_rejects TO batch_jobs_writer;
GRANT INSERT, UPDATE, DELETE ON
  serving.current_rows, serving.task_errors,
  serving.profiles, serving.drift_findings
TO batch_jobs_writer;
GRANT INSERT, UPDATE, DELETE ON
  serving.incident_rows, serving.incident_reports, serving.mutes,
  serving.outbox_messages, serving.outbox_deliveries, serving.outbox_channels
TO batch_jobs_writer;

-- Performance on late labels.
GRANT SELECT ON serving.model_performance TO batch_jobs_reader, batch_jobs_requester;
GRANT INSERT, UPDATE, DELETE ON
  serving.performance_windows, serving.model_performance_rows, serving.damage_episodes
TO batch_jobs_writer;

-- Only the owner of a partitioned table may attach to it and detach from it. The role owns it and
-- its parts, not a login, so that one login can go on where another one stopped.
DO $$
DECLARE
  views_owner text;
  part regclass;
BEGIN
  SELECT pg_get_userbyid(relowner) INTO views_owner
  FROM pg_class WHERE oid = 'serving.current_predictions'::regclass;
  IF NOT pg_has_role(current_user, 'batch_jobs_writer', 'USAGE') THEN
    EXECUTE format('GRANT batch_jobs_writer TO %I', current_user);
  END IF;
  FOR part IN
    SELECT oid FROM pg_class
    WHERE relnamespace = 'serving'::regnamespace
      AND (relname IN ('run_predictions', 'served_predictions')
           OR relkind = 'r' AND relname ~ '^predictions_r[0-9]+$')
      AND pg_get_userbyid(relowner) <> 'batch_jobs_writer'
  LOOP
    EXECUTE format('ALTER TABLE %s OWNER TO batch_jobs_writer', part);
  END LOOP;
  EXECUTE format('GRANT SELECT ON serving.run_predictions, serving.served_predictions TO %I',
    views_owner);
END$$;
