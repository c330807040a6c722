-- From schema version 4 to 5: to look a prediction up, PostgreSQL opens every table that it may be
-- in. The tables of superseded runs stay for the history and are out of that way.

-- What readers see now of large populations. A table comes here when it is published; soon after it
-- is superseded, it moves to run_predictions.
CREATE TABLE served_predictions (LIKE run_predictions INCLUDING ALL) PARTITION BY LIST (run_id);

DO $$
DECLARE
  keeper text;
  head record;
BEGIN
  SELECT pg_get_userbyid(relowner) INTO keeper
  FROM pg_class WHERE oid = 'run_predictions'::regclass;
  IF keeper <> current_user THEN  -- see roles.sql
    EXECUTE format('ALTER TABLE served_predictions OWNER TO %I', keeper);
    EXECUTE format('GRANT SELECT ON served_predictions TO %I', current_user);
  END IF;
  FOR head IN
    SELECT r.run_id, r.rows_table
    FROM serving_heads AS h
    JOIN prediction_runs AS r ON r.run_id = h.run_id
    JOIN pg_inherits AS i ON i.inhrelid = to_regclass(r.rows_table)
    WHERE i.inhparent = 'run_predictions'::regclass
  LOOP
    EXECUTE format('ALTER TABLE run_predictions DETACH PARTITION %I', head.rows_table);
    EXECUTE format('ALTER TABLE served_predictions ATTACH PARTITION %I FOR VALUES IN (%s)',
      head.rows_table, head.run_id);
  END LOOP;
END$$;

CREATE OR REPLACE VIEW predictions AS
  SELECT run_id, entity_id, part, score, label FROM shared_predictions
  UNION ALL
  SELECT run_id, entity_id, part, score, label FROM served_predictions
  UNION ALL
  SELECT run_id, entity_id, part, score, label FROM run_predictions;

CREATE OR REPLACE VIEW current_predictions AS
  SELECT c.model, c.entity_id, p.score, p.label, r.model_version, c.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM current_rows AS c
  JOIN prediction_runs AS r ON r.run_id = c.run_id
  JOIN shared_predictions AS p ON p.run_id = c.run_id AND p.entity_id = c.entity_id
  WHERE r.superseded_at IS NULL  -- else the whole run has expired, whatever is left of it here
  UNION ALL
  SELECT h.model, p.entity_id, p.score, p.label, r.model_version, h.run_id,
         r.interval_start, r.interval_end, r.published_at
  FROM serving_heads AS h
  JOIN prediction_runs AS r ON r.run_id = h.run_id
  JOIN (SELECT run_id, entity_id, score, label FROM shared_predictions
        UNION ALL
        SELECT run_id, entity_id, score, label FROM served_predictions) AS p ON p.run_id = h.run_id
  WHERE h.mode = 'replace';
