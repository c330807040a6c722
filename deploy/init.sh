#!/bin/bash
# Run once by each start of the stack, before everything else: Airflow's tables, the warehouse's, its
# roles and the sample flights and irises. Safe to repeat, and what an upgrade needs. What is wrong is
# told here, before anything else starts.
set -euo pipefail

batch-jobs init --roles --samples
airflow db migrate
