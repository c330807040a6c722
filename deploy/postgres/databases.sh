#!/bin/bash
# Run once, by a new volume of PostgreSQL: a database and a login for each of those who need one.
# The names of the roles are those of `batch-jobs init --roles`, which says what each may do.
set -euo pipefail

psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set airflow="$AIRFLOW_DB_PASSWORD" --set results="$RESULTS_PASSWORD" \
    --set owner="$WAREHOUSE_OWNER_PASSWORD" --set writer="$WAREHOUSE_WRITER_PASSWORD" \
    --set reader="$WAREHOUSE_READER_PASSWORD" --set requester="$WAREHOUSE_REQUESTER_PASSWORD" <<'SQL'
CREATE ROLE airflow LOGIN PASSWORD :'airflow';
CREATE ROLE results LOGIN PASSWORD :'results';
CREATE ROLE warehouse_owner LOGIN CREATEROLE PASSWORD :'owner';
CREATE ROLE warehouse_writer LOGIN PASSWORD :'writer';
CREATE ROLE warehouse_reader LOGIN PASSWORD :'reader';
CREATE ROLE warehouse_requester LOGIN PASSWORD :'requester';

-- Airflow's own; what Celery's tasks came to; and the sources with the predictions.
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE results OWNER results;
CREATE DATABASE warehouse OWNER warehouse_owner;
REVOKE ALL ON DATABASE airflow, results, warehouse FROM PUBLIC;
GRANT CONNECT ON DATABASE warehouse TO warehouse_writer, warehouse_reader, warehouse_requester;

CREATE ROLE batch_jobs_writer NOLOGIN;
CREATE ROLE batch_jobs_reader NOLOGIN;
CREATE ROLE batch_jobs_requester NOLOGIN;
GRANT batch_jobs_writer, batch_jobs_reader, batch_jobs_requester TO warehouse_owner WITH ADMIN OPTION;
GRANT batch_jobs_writer TO warehouse_writer;
GRANT batch_jobs_reader TO warehouse_reader;
GRANT batch_jobs_requester TO warehouse_requester;

\connect warehouse
-- Large objects are a way to write that everybody has; only a superuser can take it away.
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', string_agg(oid::regprocedure::text, ', '))
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^lo(_|write$|read$)'
\gexec
-- The owner makes the sample tables here; a team's own source tables are read by the same right.
GRANT CREATE ON SCHEMA public TO warehouse_owner;
ALTER DEFAULT PRIVILEGES FOR ROLE warehouse_owner IN SCHEMA public
  GRANT SELECT ON TABLES TO batch_jobs_writer;
SQL
