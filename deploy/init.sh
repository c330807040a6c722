#!/bin/bash
# Run once by each start of the stack, before everything else: Airflow's tables, the warehouse's, its
# roles and the sample flights and irises. Safe to repeat, and what an upgrade needs.
set -euo pipefail

airflow db migrate
batch-jobs init --roles --samples
