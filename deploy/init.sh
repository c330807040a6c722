#!/bin/bash
# Run once by each start of the stack, before everything else: Airflow's tables, the warehouse's, its
# roles and the sample flights and irises. Safe to repeat, and what an upgrade needs. What is wrong is
# told here, before anything else starts.
set -euo pipefail

batch-jobs init --roles --samples
airflow db migrate
# So that the prediction API has something to answer by from its first moment on.
if ! batch-jobs --quiet status iris | grep -q serves; then
    now=$(date --utc +%Y-%m-%dT%H:%M:%SZ)
    batch-jobs train iris --as-of "$now" && batch-jobs promote iris || true
fi
